//! Reading: accepts what `JSON.parse` accepts, up to [`DEPTH_MAX`], and names the byte where it stops.

use super::{JsString, Object, Value};

/// How many arrays and objects may be open at once.
///
/// JavaScript has no such limit, but reading, writing and dropping recurse, and 128 levels fit any stack (a browser's
/// included). Other JSON readers, serde_json for one, stop at the same depth.
pub const DEPTH_MAX: usize = 128;

/// Text that `JSON.parse` would refuse, or that nests too deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {offset}")]
pub struct JsonError {
    /// Where reading stopped, in bytes from the start.
    pub offset: usize,
    /// What is wrong there.
    pub kind: JsonErrorKind,
}

/// What is wrong with a JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonErrorKind {
    /// The bytes are not UTF-8.
    #[error("invalid UTF-8")]
    Utf8,
    /// The text ends inside a value.
    #[error("unexpected end of JSON")]
    End,
    /// A character that cannot stand there.
    #[error("unexpected character")]
    Unexpected,
    /// A control character inside a string; it has to be escaped.
    #[error("unescaped control character")]
    Control,
    /// A backslash that starts no known escape.
    #[error("unknown escape")]
    Escape,
    /// More than [`DEPTH_MAX`] arrays and objects are open.
    #[error("more than {DEPTH_MAX} nested arrays and objects")]
    Depth,
    /// Something follows the value.
    #[error("text after the JSON value")]
    Trailing,
}

/// Reads one JSON value, with white space around it at most.
///
/// # Errors
///
/// [`JsonError`] for everything that `JSON.parse` refuses (a byte order mark included), for bytes that are not UTF-8 and for
/// more than [`DEPTH_MAX`] levels.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| JsonError { offset: error.valid_up_to(), kind: JsonErrorKind::Utf8 })?;
    let mut parser = Parser { text, bytes, at: 0, depth: 0 };
    parser.skip_space();
    let value = parser.value()?;
    parser.skip_space();
    if parser.at < bytes.len() { Err(parser.error(JsonErrorKind::Trailing)) } else { Ok(value) }
}

struct Parser<'a> {
    text: &'a str,
    /// The same as `text`.
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn value(&mut self) -> Result<Value, JsonError> {
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            _ => Err(self.stuck()),
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Value, JsonError>) -> Result<Value, JsonError> {
        if self.depth == DEPTH_MAX {
            return Err(self.error(JsonErrorKind::Depth));
        }
        self.depth += 1;
        self.at += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, JsonError> {
        let mut pairs = Vec::new();
        self.skip_space();
        if !self.take(b'}') {
            loop {
                self.skip_space();
                if self.peek() != Some(b'"') {
                    return Err(self.stuck());
                }
                let key = self.string()?;
                self.skip_space();
                self.expect(b':')?;
                self.skip_space();
                pairs.push((key, self.value()?));
                self.skip_space();
                if self.take(b'}') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        Ok(Value::Object(Object::from_pairs(pairs)))
    }

    fn array(&mut self) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        self.skip_space();
        if !self.take(b']') {
            loop {
                self.skip_space();
                items.push(self.value()?);
                self.skip_space();
                if self.take(b']') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        Ok(Value::Array(items))
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _ = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        // Rust's parser rounds correctly and takes exponents of any length: 1e400 is infinity there too.
        self.text[start..self.at].parse().map(Value::Number).map_err(|_| self.error(JsonErrorKind::Unexpected))
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.stuck()) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<JsString, JsonError> {
        self.at += 1;
        let mut out = TextBuilder::Text(String::new());
        loop {
            let start = self.at;
            while self.peek().is_some_and(|b| b >= 0x20 && b != b'"' && b != b'\\') {
                self.at += 1;
            }
            // The run ends at the end of the text or before an ASCII byte: both are character boundaries.
            out.push_str(&self.text[start..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out.finish());
                }
                Some(b'\\') => self.escape(&mut out)?,
                Some(_) => return Err(self.error(JsonErrorKind::Control)),
                None => return Err(self.error(JsonErrorKind::End)),
            }
        }
    }

    fn escape(&mut self, out: &mut TextBuilder) -> Result<(), JsonError> {
        self.at += 1;
        let plain = match self.peek() {
            Some(b'u') => {
                self.at += 1;
                let unit = self.hex_unit()?;
                return self.unicode_escape(unit, out);
            }
            Some(b @ (b'"' | b'\\' | b'/')) => char::from(b),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(_) => return Err(self.error(JsonErrorKind::Escape)),
            None => return Err(self.error(JsonErrorKind::End)),
        };
        self.at += 1;
        out.push_char(plain);
        Ok(())
    }

    fn unicode_escape(&mut self, unit: u16, out: &mut TextBuilder) -> Result<(), JsonError> {
        if (0xD800..0xDC00).contains(&unit) && self.bytes[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex_unit()?;
            if let Some(Ok(pair)) = char::decode_utf16([unit, low]).next() {
                out.push_char(pair);
                return Ok(());
            }
            self.at = back;
        }
        match char::from_u32(u32::from(unit)) {
            Some(c) => out.push_char(c),
            None => out.push_lone(unit),
        }
        Ok(())
    }

    fn hex_unit(&mut self) -> Result<u16, JsonError> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = match self.peek() {
                Some(b @ b'0'..=b'9') => b - b'0',
                Some(b @ b'a'..=b'f') => b - b'a' + 10,
                Some(b @ b'A'..=b'F') => b - b'A' + 10,
                Some(_) => return Err(self.error(JsonErrorKind::Escape)),
                None => return Err(self.error(JsonErrorKind::End)),
            };
            unit = unit << 4 | u16::from(digit);
            self.at += 1;
        }
        Ok(unit)
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, JsonError> {
        for expected in word.bytes() {
            self.expect(expected)?;
        }
        Ok(value)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.take(byte) { Ok(()) } else { Err(self.stuck()) }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn stuck(&self) -> JsonError {
        self.error(if self.at < self.bytes.len() { JsonErrorKind::Unexpected } else { JsonErrorKind::End })
    }

    fn error(&self, kind: JsonErrorKind) -> JsonError {
        JsonError { offset: self.at, kind }
    }
}

/// Text while it is read: UTF-8 until the first lone surrogate, code units from there on.
enum TextBuilder {
    Text(String),
    Units(Vec<u16>),
}

impl TextBuilder {
    fn push_str(&mut self, text: &str) {
        match self {
            Self::Text(out) => out.push_str(text),
            Self::Units(out) => out.extend(text.encode_utf16()),
        }
    }

    fn push_char(&mut self, c: char) {
        self.push_str(c.encode_utf8(&mut [0; 4]));
    }

    fn push_lone(&mut self, unit: u16) {
        if let Self::Text(text) = self {
            *self = Self::Units(text.encode_utf16().collect());
        }
        if let Self::Units(out) = self {
            out.push(unit);
        }
    }

    fn finish(self) -> JsString {
        match self {
            Self::Text(text) => text.into(),
            Self::Units(units) => JsString::from_utf16(units),
        }
    }
}
