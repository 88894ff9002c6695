//! Which worker is looked at.

use std::io;
use std::path::{Path, PathBuf};

use worker::observe::{Snapshot, read};

/// Why no worker is looked at.
#[derive(Debug, thiserror::Error)]
enum FindError {
    #[error(
        "no worker runs here: none answers in {looked}. Start one with `gridsocket local` or `gridsocket run <queue>`, or say where \
         yours keeps its data with --data-directory"
    )]
    Nobody { looked: String },
    #[error("the worker in {} belongs to another user: look at it as that user, or as root", .folder.display())]
    Theirs { folder: PathBuf },
    #[error("several workers run here, in {found}: say which one with --data-directory")]
    Several { found: String },
    #[error("the worker in {} does not answer: {source}", .folder.display())]
    Mute { folder: PathBuf, source: io::Error },
}

/// Looks into the folders; there has to be one worker.
pub(super) async fn find(folders: &[PathBuf]) -> anyhow::Result<(PathBuf, Snapshot)> {
    let mut found = Vec::new();
    let mut problem = None;
    for folder in folders {
        match read(folder).await {
            Ok(snapshot) => found.push((folder.clone(), snapshot)),
            Err(error) => problem = problem.or(told(folder, error)),
        }
    }
    match (found.len(), problem) {
        (0, Some(problem)) => Err(problem.into()),
        (0, None) => Err(FindError::Nobody { looked: listed(folders.iter()) }.into()),
        (1, _) => Ok(found.remove(0)),
        _ => Err(FindError::Several { found: listed(found.iter().map(|(folder, _)| folder)) }.into()),
    }
}

/// What is wrong where there seems to be a worker.
fn told(folder: &Path, source: io::Error) -> Option<FindError> {
    let folder = folder.to_owned();
    let kind = source.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory) {
        return None;
    }
    Some(if kind == io::ErrorKind::PermissionDenied {
        FindError::Theirs { folder }
    } else {
        FindError::Mute { folder, source }
    })
}

fn listed<'a>(folders: impl Iterator<Item = &'a PathBuf>) -> String {
    folders.map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}
