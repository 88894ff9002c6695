//! Where each file of a definition goes. Names are strangers': whatever they are, a file lands below its run's directory, in a place
//! of its own, or is refused by name. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use protocol::definition::{DataRef, Definition};

use super::{RunDirs, below};
use crate::brief::brief;

/// The most files that one job is given. Each is a few system calls before it can start.
pub(super) const FILES_MAX: usize = 100_000;
/// The most of them at absolute names: each is a mount of its own.
const MOUNTS_MAX: usize = 1_000;
/// What file systems take as a name between two slashes.
const SEGMENT_BYTES_MAX: usize = 255;
/// What the system takes as a path, its end not counted.
const PATH_BYTES_MAX: usize = 4095;

/// Why the files cannot all be put there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("there are {given} inputs and config files, {FILES_MAX} is the most; put them in one archive")]
    Files { given: usize },
    #[error(
        "there are {given} config files with absolute names, {MOUNTS_MAX} is the most; mount a folder's worth as inputs"
    )]
    Mounts { given: usize },
    #[error("the file name {:?} has a part longer than {SEGMENT_BYTES_MAX} bytes", brief(.name))]
    Segment { name: String },
    #[error("the file name {:?} is too long: with the folder before it, it has more than {PATH_BYTES_MAX} bytes", brief(.name))]
    Path { name: String },
    #[error("{:?} cannot be a file and, for {:?}, a folder too", brief(.file), brief(.below))]
    Conflict { file: String, below: String },
}

/// Each file's path, with its name and what it is. A relative config file takes the place of an input of that name.
pub(super) fn places<'a>(
    definition: &'a Definition,
    dirs: &RunDirs,
) -> Result<BTreeMap<PathBuf, (&'a str, &'a DataRef)>, PlaceError> {
    let given = definition.inputs.len() + definition.config_files.len();
    if given > FILES_MAX {
        return Err(PlaceError::Files { given });
    }
    let given = definition.config_files.iter().filter(|(name, _)| name.starts_with('/')).count();
    if given > MOUNTS_MAX {
        return Err(PlaceError::Mounts { given });
    }
    let mut places: BTreeMap<PathBuf, (&str, &DataRef)> = BTreeMap::new();
    for (name, data) in definition.inputs.iter().chain(&definition.config_files) {
        let path = if name.starts_with('/') { dirs.config_file(name) } else { below(&dirs.inputs, name) };
        check(&path, name)?;
        places.insert(path, (name, data));
    }
    // What is below a path comes right after it.
    for ((file, (name, _)), (path, (other, _))) in places.iter().zip(places.iter().skip(1)) {
        if path.starts_with(file) {
            return Err(PlaceError::Conflict { file: (*name).to_owned(), below: (*other).to_owned() });
        }
    }
    Ok(places)
}

fn check(path: &Path, name: &str) -> Result<(), PlaceError> {
    if name.split('/').any(|segment| segment.len() > SEGMENT_BYTES_MAX) {
        return Err(PlaceError::Segment { name: name.to_owned() });
    }
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(PlaceError::Path { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn definition(inputs: &[String], config_files: &[String]) -> Definition {
        let all = |names: &[String]| {
            let refs = names.iter().map(|name| (name.clone(), json!({ "value": "x" })));
            Value::Object(refs.collect::<Map<String, Value>>())
        };
        let fields = json!({ "image": "x", "inputs": all(inputs), "configFiles": all(config_files) });
        Definition::parse(fields.to_string().as_bytes()).unwrap()
    }

    fn refusal(inputs: &[&str], config_files: &[&str]) -> Option<PlaceError> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let definition = definition(&owned(inputs), &owned(config_files));
        definition.check_names().unwrap();
        places(&definition, &RunDirs::at(Path::new("/d"))).err()
    }

    #[test]
    fn what_cannot_be_made_is_refused_by_name() {
        let conflict =
            |file: &str, below: &str| Some(PlaceError::Conflict { file: file.to_owned(), below: below.to_owned() });
        assert_eq!(refusal(&["a", "a/b"], &[]), conflict("a", "a/b"));
        assert_eq!(refusal(&["a/b/c", "a.b", "./a//b"], &[]), conflict("./a//b", "a/b/c"));
        assert_eq!(refusal(&["x"], &["x/y"]), conflict("x", "x/y"));
        assert_eq!(refusal(&[], &["/etc/a", "/etc/a/b"]), conflict("/etc/a", "/etc/a/b"));
        assert_eq!(refusal(&["a", "a.b", "ab", "A", "b/a"], &["a", "/a", "/inputs/a/b"]), None);
        assert!(matches!(refusal(&[&"x".repeat(256)], &[]), Some(PlaceError::Segment { .. })));
        assert_eq!(refusal(&[&"x".repeat(255)], &[]), None);
        assert!(matches!(refusal(&["x/".repeat(3000).trim_end_matches('/')], &[]), Some(PlaceError::Path { .. })));
    }

    #[test]
    fn errors_are_short_whatever_the_name() {
        let long = "x/".repeat(100_000) + "y";
        assert!(refusal(&[&long], &[]).unwrap().to_string().len() < 1000);
    }

    #[test]
    fn ten_thousand_names_are_fine_and_the_most_is_told() {
        let names: Vec<String> = (0..10_000).map(|number| format!("folder {}/{number}", number % 100)).collect();
        let dirs = RunDirs::at(Path::new("/d"));
        assert_eq!(places(&definition(&names, &[]), &dirs).unwrap().len(), 10_000);
        let names: Vec<String> = (0..=FILES_MAX).map(|number| number.to_string()).collect();
        assert_eq!(places(&definition(&names, &[]), &dirs), Err(PlaceError::Files { given: FILES_MAX + 1 }));
        let names: Vec<String> = (0..=MOUNTS_MAX).map(|number| format!("/etc/{number}")).collect();
        assert_eq!(places(&definition(&[], &names), &dirs), Err(PlaceError::Mounts { given: MOUNTS_MAX + 1 }));
    }

    /// Names out of what makes trouble.
    fn name() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("a".to_owned()),
            Just("A".to_owned()),
            Just("b".to_owned()),
            Just("..".to_owned()),
            Just(".".to_owned()),
            Just(String::new()),
            Just("...".to_owned()),
            Just(" ".to_owned()),
            Just("\u{0}".to_owned()),
            Just("\\..\\".to_owned()),
            Just("é".to_owned()),
            Just("e\u{301}".to_owned()),
            Just("definition.json".to_owned()),
            Just("configFiles".to_owned()),
            Just("-rf".to_owned()),
            Just("x".repeat(255)),
            Just("x".repeat(256)),
            any::<String>(),
        ];
        proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Names that are not refused are made, each below its own directory, and nothing else is.
        #[test]
        fn files_land_below_their_directory_or_are_refused(
            inputs in proptest::collection::vec(name(), 0..6),
            config_files in proptest::collection::vec(name(), 0..4),
        ) {
            let definition = definition(&inputs, &config_files);
            prop_assume!(definition.check_names().is_ok());
            let around = tempfile::tempdir().unwrap();
            let dirs = RunDirs::at(&around.path().join("run"));
            let Ok(places) = places(&definition, &dirs) else { return Ok(()) };
            dirs.make().unwrap();
            for (path, (name, _)) in &places {
                let home = if name.starts_with('/') { &dirs.config_files } else { &dirs.inputs };
                prop_assert!(path.starts_with(home) && path != home, "{name:?}: {path:?}");
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::File::create_new(path).unwrap();
            }
            prop_assert_eq!(files_below(around.path()), places.into_keys().collect::<Vec<_>>());
        }
    }

    fn files_below(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                found.extend(files_below(&entry.path()));
            } else {
                found.push(entry.path());
            }
        }
        found.sort();
        found
    }
}
