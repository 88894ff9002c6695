//! `.dockerignore`: which files of a context are left at home. The engine's clients apply it, so we do; the rules are theirs.

/// The most lines that are read: each file is held against all of them.
const LINES_MAX: usize = 1_000;

/// The patterns of one file, in their order; the last that matches decides.
#[derive(Debug, Default)]
pub(super) struct Ignore(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    /// `!`: what matches is taken all the same.
    is_exception: bool,
    parts: Vec<String>,
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
        let pattern = |line: &str| {
            let (is_exception, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            let mut parts: Vec<String> = Vec::new();
            for part in line.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(parts.pop()),
                    _ => parts.push(part.to_owned()),
                }
            }
            (!parts.is_empty()).then_some(Pattern { is_exception, parts })
        };
        Self(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .filter_map(pattern)
                .take(LINES_MAX)
                .collect(),
        )
    }

    /// Whether the file or directory of that clean name is left out. What lies below a pattern's match is matched too.
    pub(super) fn matches(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split('/').collect();
        let is_match = |pattern: &Pattern| {
            (1..=parts.len()).any(|end| {
                let head = parts.get(..end).unwrap_or_default();
                matches_parts(&pattern.parts, head)
            })
        };
        let last = self.0.iter().rev().find(|pattern| is_match(pattern));
        last.is_some_and(|pattern| !pattern.is_exception)
    }
}

/// Segment by segment; `**` stands for any number of them. Work is bounded by the product of both lengths.
fn matches_parts(pattern: &[String], name: &[&str]) -> bool {
    // reach[i]: the pattern so far can end before name[i].
    let mut reach = vec![false; name.len() + 1];
    if let Some(first) = reach.first_mut() {
        *first = true;
    }
    for part in pattern {
        let mut next = vec![false; name.len() + 1];
        if part == "**" {
            let mut open = false;
            for (slot, was) in next.iter_mut().zip(&reach) {
                open |= *was;
                *slot = open;
            }
        } else {
            let segment: Vec<char> = part.chars().collect();
            for ((slot, was), name) in next.iter_mut().skip(1).zip(&reach).zip(name) {
                *slot = *was && matches_segment(&segment, &name.chars().collect::<Vec<_>>());
            }
        }
        reach = next;
    }
    reach.last().copied().unwrap_or_default()
}

/// `*`, `?`, `[a-z]`, `[^a]` and `\` within one segment.
fn matches_segment(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < name.len() {
        match one(pattern.get(at..).unwrap_or_default(), name.get(from).copied().unwrap_or_default()) {
            _ if pattern.get(at) == Some(&'*') => {
                star = Some((at, from));
                at += 1;
                continue;
            }
            Some(len) => {
                at += len;
                from += 1;
                continue;
            }
            None => {}
        }
        // The last star takes one more.
        let Some((star_at, star_from)) = star else { return false };
        at = star_at + 1;
        from = star_from + 1;
        star = Some((star_at, from));
    }
    pattern.get(at..).unwrap_or_default().iter().all(|c| *c == '*')
}

/// How much of the pattern stands for `c`, if its start does.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == c).then_some(2),
        ['[', class @ ..] => {
            let (is_not, body) = match class {
                ['^', body @ ..] => (true, body),
                body => (false, body),
            };
            let end = body.iter().skip(1).position(|c| *c == ']')? + 1;
            let mut set = body.get(..end).unwrap_or_default();
            let mut is_in = false;
            loop {
                match set {
                    [low, '-', high, rest @ ..] => {
                        is_in |= (*low..=*high).contains(&c);
                        set = rest;
                    }
                    [only, rest @ ..] => {
                        is_in |= *only == c;
                        set = rest;
                    }
                    [] => break,
                }
            }
            (is_in != is_not).then_some(1 + usize::from(is_not) + end + 1)
        }
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_out<'a>(text: &str, names: &[&'a str]) -> Vec<&'a str> {
        let ignore = Ignore::parse(text);
        names.iter().copied().filter(|name| ignore.matches(name)).collect()
    }

    #[test]
    fn patterns_match_as_in_the_engines_documentation() {
        let names = [
            "a",
            "temp",
            "sub/temp",
            "sub/tempa",
            "sub/deep/tempb",
            "tempa",
            "x.md",
            "README.md",
            "sub/x.md",
            ".git",
            ".git/HEAD",
        ];
        assert_eq!(left_out("# a\n\n*/temp*\n", &names), ["sub/temp", "sub/tempa"]);
        assert_eq!(left_out("*/*/temp*", &names), ["sub/deep/tempb"]);
        assert_eq!(left_out("temp?", &names), ["tempa"]);
        assert_eq!(left_out("**/*.md", &names), ["x.md", "README.md", "sub/x.md"]);
        assert_eq!(left_out("*.md\n!README.md", &names), ["x.md"]);
        assert_eq!(left_out("!README.md\n*.md", &names), ["x.md", "README.md"]);
        assert_eq!(left_out("/.git/", &names), [".git", ".git/HEAD"]);
        assert_eq!(left_out("**\n!sub/x.md", &names).len(), names.len() - 1);
        assert_eq!(left_out("sub", &names), ["sub/temp", "sub/tempa", "sub/deep/tempb", "sub/x.md"]);
        assert_eq!(left_out("sub/**/tempb\n./a\nq/../temp", &names), ["a", "temp", "sub/deep/tempb"]);
        assert_eq!(left_out("[s-z]*/[^x]*", &names), ["sub/temp", "sub/tempa", "sub/deep/tempb"]);
        assert_eq!(left_out("\\a\n..\n.\n", &names), ["a"]);
    }

    #[test]
    fn a_pattern_made_to_take_for_ever_does_not() {
        let stars = "*a".repeat(200);
        let name = "a".repeat(255);
        assert!(!Ignore::parse(&format!("{stars}b")).matches(&name));
        let deep = "**/".repeat(400);
        assert!(!Ignore::parse(&format!("{deep}x")).matches(&"a/".repeat(400)));
    }
}
