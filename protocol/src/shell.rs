//! Splits a command line into arguments as the original does: by the rules of npm's `shell-quote` 1.8.1, with the
//! definition's `env` for variables.
//!
//! It is no shell: quotes, backslashes and variables are understood; anything with an operator, a glob or a comment
//! comes out as one argument, the whole line. The code follows that library step by step, because commands depend on
//! its oddities (`$_FOO` swallows the `F`). Not followed: names that every JavaScript object has (`$constructor`) are
//! unknown like any other, and what is swallowed is a character, not half of a surrogate pair.

use std::collections::BTreeMap;

use crate::duration::is_js_space;

/// The most bytes that the arguments of one command may come to: variables can multiply a line without end, and no
/// Linux starts a program with more than 6 MiB of arguments.
pub const ARGV_BYTES_MAX: usize = 8 << 20;

/// Why a command line cannot be split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShellError {
    /// `${}`, or `${` without its `}` in the same word.
    #[error("bad substitution at {near:?}; write ${{NAME}}, or put the text in single quotes")]
    BadSubstitution {
        /// The text from the `$` on, cut short.
        near: String,
    },
    /// The arguments come to more than [`ARGV_BYTES_MAX`].
    #[error("the command's arguments come to more than {ARGV_BYTES_MAX} bytes")]
    TooLong,
}

/// Splits `text`, taking `$NAME` and `${NAME}` from `env` (of a name given twice the last counts; unknown ones are empty).
///
/// Blank text gives no arguments.
///
/// # Errors
///
/// [`ShellError`], for which the job fails.
pub fn parse_command(text: &str, env: &[(String, String)]) -> Result<Vec<String>, ShellError> {
    let env: BTreeMap<&str, &str> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let chars: Vec<char> = text.chars().collect();
    let mut argv = Vec::new();
    let mut is_plain = true;
    let mut left = ARGV_BYTES_MAX;
    for chunk in (Chunks { chars: &chars, at: 0 }) {
        let word = match chunk {
            Chunk::Operator => Word::Special,
            Chunk::Word(chars) => Scanner { chars, at: 0, env: &env, out: String::new(), left }.scan()?,
        };
        match word {
            Word::Plain(word) => {
                left = left.saturating_sub(word.len());
                argv.push(word);
            }
            Word::Special => is_plain = false,
            Word::Comment => {
                // What follows is not even looked at, bad substitutions included.
                is_plain = false;
                break;
            }
        }
    }
    if is_plain { Ok(argv) } else { Ok(vec![text.to_owned()]) }
}

/// Runs of touching bare and quoted parts, and operators; what is between them is dropped.
struct Chunks<'a> {
    chars: &'a [char],
    at: usize,
}

enum Chunk<'a> {
    Operator,
    Word(&'a [char]),
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        while self.at < self.chars.len() {
            let rest = &self.chars[self.at..];
            if rest.first().copied().is_some_and(is_operator) {
                self.at += 1;
                return Some(Chunk::Operator);
            }
            let len = word_len(rest);
            if len > 0 {
                self.at += len;
                return Some(Chunk::Word(&rest[..len]));
            }
            self.at += 1; // White space, or a quote that nothing closes.
        }
        None
    }
}

const fn is_operator(c: char) -> bool {
    matches!(c, '|' | '&' | ';' | '(' | ')' | '<' | '>')
}

const fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'')
}

fn word_len(chars: &[char]) -> usize {
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        if is_quote(c) {
            let Some(len) = quoted_len(&chars[at..], c) else { break };
            at += len;
        } else if c == '\\' && chars.get(at + 1).is_some_and(|&next| is_escapable(next)) {
            at += 2;
        } else if is_operator(c) || is_js_space(c) {
            break;
        } else {
            at += 1;
        }
    }
    at
}

/// A backslash takes these into the word; before other white space it stands alone and the word ends.
const fn is_escapable(c: char) -> bool {
    is_quote(c) || is_operator(c) || matches!(c, ' ' | '\t')
}

/// The length of the quoted part that `chars` starts with: up to the first closing quote without a backslash before
/// it, else up to the last one with.
fn quoted_len(chars: &[char], quote: char) -> Option<usize> {
    let mut last_escaped = None;
    let mut at = 1;
    while let Some(&c) = chars.get(at) {
        if c == quote {
            return Some(at + 1);
        }
        if c == '\\' && chars.get(at + 1) == Some(&quote) {
            last_escaped = Some(at + 2);
            at += 1;
        }
        at += 1;
    }
    last_escaped
}

enum Word {
    Plain(String),
    /// An operator or a glob.
    Special,
    Comment,
}

/// Takes one word apart: quotes off, escapes and variables resolved.
struct Scanner<'a> {
    chars: &'a [char],
    at: usize,
    env: &'a BTreeMap<&'a str, &'a str>,
    out: String,
    /// How many bytes `out` may still take.
    left: usize,
}

impl Scanner<'_> {
    fn scan(mut self) -> Result<Word, ShellError> {
        let mut quote = None;
        let mut escaped = false;
        let mut is_glob = false;
        while let Some(&c) = self.chars.get(self.at) {
            // Escaped ones count too: that is how the library does it.
            is_glob |= quote.is_none() && matches!(c, '*' | '?');
            if escaped {
                self.push(c)?;
                escaped = false;
            } else if let Some(open) = quote {
                if c == open {
                    quote = None;
                } else if open == '"' {
                    self.double_quoted(c)?;
                } else {
                    self.push(c)?;
                }
            } else if is_quote(c) {
                quote = Some(c);
            } else if is_operator(c) {
                return Ok(Word::Special);
            } else if c == '#' {
                return Ok(Word::Comment);
            } else if c == '\\' {
                escaped = true;
            } else if c == '$' {
                self.variable()?;
            } else {
                self.push(c)?;
            }
            self.at += 1;
        }
        Ok(if is_glob { Word::Special } else { Word::Plain(self.out) })
    }

    fn double_quoted(&mut self, c: char) -> Result<(), ShellError> {
        match c {
            '\\' => {
                self.at += 1;
                match self.chars.get(self.at) {
                    Some(&next @ ('"' | '\\' | '$')) => self.push(next),
                    Some(&next) => self.push('\\').and_then(|()| self.push(next)),
                    None => self.push('\\'),
                }
            }
            '$' => self.variable(),
            _ => self.push(c),
        }
    }

    /// Resolves the variable whose `$` is at `at`; leaves `at` on the last character used up.
    fn variable(&mut self) -> Result<(), ShellError> {
        let dollar = self.at;
        let start = dollar + 1;
        let name = match self.chars.get(start) {
            Some('{') => {
                let end = self.chars[start..].iter().position(|&c| c == '}').map(|len| start + len);
                match end {
                    Some(end) if end > start + 1 => {
                        self.at = end;
                        &self.chars[start + 1..end]
                    }
                    Some(_) | None => return Err(self.bad_substitution(dollar)),
                }
            }
            Some('*' | '@' | '#' | '?' | '$' | '!' | '_' | '-') => {
                // The library steps over one character too many here.
                self.at = start + 1;
                &self.chars[start..=start]
            }
            Some(_) | None => {
                let rest = &self.chars[start..];
                let len = rest.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').count();
                self.at = dollar + len;
                &rest[..len]
            }
        };
        let name: String = name.iter().collect();
        let unknown = if name.is_empty() { "$" } else { "" };
        let value = self.env.get(name.as_str()).copied().unwrap_or(unknown);
        self.take_room(value.len())?;
        self.out.push_str(value);
        Ok(())
    }

    fn bad_substitution(&self, dollar: usize) -> ShellError {
        const SHOWN_CHARS: usize = 40;
        ShellError::BadSubstitution { near: self.chars[dollar..].iter().take(SHOWN_CHARS).collect() }
    }

    fn push(&mut self, c: char) -> Result<(), ShellError> {
        self.take_room(c.len_utf8())?;
        self.out.push(c);
        Ok(())
    }

    fn take_room(&mut self, bytes: usize) -> Result<(), ShellError> {
        self.left = self.left.checked_sub(bytes).ok_or(ShellError::TooLong)?;
        Ok(())
    }
}
