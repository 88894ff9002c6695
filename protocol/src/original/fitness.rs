//! Which definitions the original's workers survive. One that they do not survive is never sent to them.

use crate::definition::{CommandLine, Definition};
use crate::shell::{ShellError, parse_command};

/// The smallest definition, in bytes, that the store of the original's worker refuses, and the worker dies of it.
pub const DEADLY_BYTES: usize = 64 * 1024;

/// Room below [`DEADLY_BYTES`]: the worker stores the definition in an encoding of its own, a little longer than JSON text.
const ENCODING_BYTES: usize = 1024;

/// Why an original worker cannot be sent a definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Its store would refuse it.
    #[error(
        "the definition is {0} bytes; workers of the original's kind take less than 64 KiB: upload large inputs, or run a gridsocket worker"
    )]
    TooLarge(usize),
    /// Its command line has a `${` that the worker's parser throws on.
    #[error("the command cannot be split ({0}); a worker of the original's kind would die of it")]
    BadCommand(ShellError),
    /// It is no definition.
    #[error("the definition cannot be read")]
    Unreadable,
}

/// Says whether an original worker survives `definition`.
///
/// # Errors
///
/// [`Unfit`] when it does not.
pub fn check(definition: &[u8]) -> Result<(), Unfit> {
    // Text that is one byte a character there may take two: the larger of both ways to count decides.
    let wide = std::str::from_utf8(definition).map_err(|_| Unfit::Unreadable)?;
    let stored = if wide.is_ascii() { wide.len() } else { wide.len().max(2 * wide.encode_utf16().count()) };
    if stored + ENCODING_BYTES >= DEADLY_BYTES {
        return Err(Unfit::TooLarge(definition.len()));
    }
    let read = Definition::parse(definition).map_err(|_| Unfit::Unreadable)?;
    for line in [&read.command, &read.entrypoint].into_iter().flatten() {
        if let CommandLine::Text(text) = line {
            parse_command(text, &read.env).map_err(Unfit::BadCommand)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_that_would_kill_an_original_worker_is_found() {
        assert_eq!(check(br#"{"image":"alpine","command":"echo ${A} '${'","env":{"A":"b"}}"#), Ok(()));
        assert!(matches!(check(br#"{"image":"alpine","command":"echo ${"}"#), Err(Unfit::BadCommand(_))));
        assert!(matches!(check(br#"{"image":"alpine","entrypoint":"sh -c \"${}\""}"#), Err(Unfit::BadCommand(_))));
        assert_eq!(check(br#"{"image":"alpine","entrypoint":["${"]}"#), Ok(()), "it is not parsed");
        let large = format!(r#"{{"command":"{}"}}"#, "x".repeat(DEADLY_BYTES));
        assert!(matches!(check(large.as_bytes()), Err(Unfit::TooLarge(_))));
        let wide = format!(r#"{{"command":"{}"}}"#, "é".repeat(DEADLY_BYTES / 2));
        assert!(matches!(check(wide.as_bytes()), Err(Unfit::TooLarge(_))));
    }
}
