//! One job's two logs and the folder they are in.

use std::io;
use std::path::PathBuf;

use protocol::id::RunNumber;
use protocol::native::{LogKind, LogLine};

use super::chunk::Name;
use super::track::Track;
use super::{LogError, LogLimits, LogPage};

#[derive(Debug)]
pub(super) struct JobLog {
    dir: PathBuf,
    limits: LogLimits,
    /// Absent until the folder is read, and again after a failed write: what is on disk then decides.
    tracks: Option<Tracks>,
}

#[derive(Debug)]
struct Tracks {
    build: Track,
    run: Track,
}

impl Tracks {
    fn of(&mut self, kind: LogKind) -> &mut Track {
        match kind {
            LogKind::Build => &mut self.build,
            LogKind::Run => &mut self.run,
        }
    }

    /// Drops the oldest file of the longer log until both fit. A log's last file stays.
    fn fit(&mut self, bytes_max: u64) -> io::Result<()> {
        while self.build.bytes() + self.run.bytes() > bytes_max {
            let (longer, shorter) = if self.build.bytes() > self.run.bytes() {
                (&mut self.build, &mut self.run)
            } else {
                (&mut self.run, &mut self.build)
            };
            if !longer.drop_oldest()? && !shorter.drop_oldest()? {
                break;
            }
        }
        Ok(())
    }
}

impl JobLog {
    pub(super) const fn new(dir: PathBuf, limits: LogLimits) -> Self {
        Self { dir, limits, tracks: None }
    }

    fn tracks(&mut self) -> io::Result<&mut Tracks> {
        let tracks = match self.tracks.take() {
            Some(tracks) => tracks,
            None => {
                let names = names(&self.dir)?;
                let track = |kind| Track::open(&self.dir, kind, self.limits, &names);
                Tracks { build: track(LogKind::Build)?, run: track(LogKind::Run)? }
            }
        };
        Ok(self.tracks.insert(tracks))
    }

    /// Adds lines; says how many of them were known already, or are of no use any more.
    pub(super) fn append(
        &mut self,
        kind: LogKind,
        run: RunNumber,
        first: Option<u64>,
        lines: Vec<LogLine>,
    ) -> Result<usize, LogError> {
        let bytes_max = self.limits.job_bytes_max;
        let tracks = self.tracks()?;
        let appended =
            tracks.of(kind).append(run, first, lines).and_then(|known| Ok(tracks.fit(bytes_max).map(|()| known)?));
        if appended.is_err() {
            self.tracks = None;
        }
        appended
    }

    pub(super) fn read(&mut self, kind: LogKind, since: u64, lines_max: usize) -> Result<LogPage, LogError> {
        let read = self.tracks()?.of(kind).read(since, lines_max);
        if read.is_err() {
            self.tracks = None;
        }
        Ok(read?)
    }

    pub(super) fn remove(&mut self) -> Result<(), LogError> {
        self.tracks = None;
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn names(dir: &std::path::Path) -> io::Result<Vec<Name>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().to_str().and_then(|name| name.parse::<Name>().ok()));
    }
    Ok(names)
}
