//! File names in definitions: hostile until checked.

use super::Definition;

/// A file name that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: the file name {name:?} {rule}")]
pub struct NameError {
    /// The field that holds the name: `inputs`, `configFiles`, ….
    pub field: &'static str,
    /// The name.
    pub name: String,
    /// The rule that it breaks.
    pub rule: NameRule,
}

/// The rules for file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameRule {
    /// A name has at least one character.
    #[error("is empty")]
    Empty,
    /// No operating system takes a NUL.
    #[error("holds a NUL character")]
    Nul,
    /// `..` would lead out of the directory.
    #[error("has a `..` segment")]
    Parent,
    /// The field takes relative names only.
    #[error("is absolute")]
    Absolute,
    /// `a/`, `a/.` and `.` are directories.
    #[error("names a directory, not a file")]
    Directory,
}

/// Checks a name that has to stay below a directory.
///
/// # Errors
///
/// [`NameError`] that names `field`.
pub fn check_relative_name(field: &'static str, name: &str) -> Result<(), NameError> {
    if name.starts_with('/') {
        return Err(NameError { field, name: name.to_owned(), rule: NameRule::Absolute });
    }
    check_name(field, name)
}

fn check_name(field: &'static str, name: &str) -> Result<(), NameError> {
    let refuse = |rule| Err(NameError { field, name: name.to_owned(), rule });
    if name.is_empty() {
        refuse(NameRule::Empty)
    } else if name.contains('\0') {
        refuse(NameRule::Nul)
    } else if name.split('/').any(|segment| segment == "..") {
        refuse(NameRule::Parent)
    } else if name.rsplit('/').next().is_none_or(|last| last.is_empty() || last == ".") {
        refuse(NameRule::Directory)
    } else {
        Ok(())
    }
}

pub(super) fn check(definition: &Definition) -> Result<(), NameError> {
    definition.inputs.iter().try_for_each(|(name, _)| check_relative_name("inputs", name))?;
    definition.config_files.iter().try_for_each(|(name, _)| check_name("configFiles", name))
}
