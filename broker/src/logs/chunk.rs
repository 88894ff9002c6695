//! One file of a log: consecutive lines of one run, each as a line of JSON. Its name says where the lines belong.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use protocol::id::{RunNumber, UnixMillis};
use protocol::native::{LogKind, LogLine};

/// Every so many lines the place of one is remembered while a file is written, so that followers near its end, who come
/// often, do not read it from the start.
const MARK_EVERY: u64 = 64;

/// What a file's name says: `run-<number of its first line>-<run>-<that line's number within the run>.log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) kind: LogKind,
    /// The number of the first line, counted over all runs.
    pub(super) first: u64,
    pub(super) run: RunNumber,
    /// The number of the first line among its run's.
    pub(super) index: u64,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            LogKind::Build => "build",
            LogKind::Run => "run",
        };
        write!(f, "{kind}-{:016}-{}-{}.log", self.first, self.run, self.index)
    }
}

/// Not the name of a file of a log.
pub(super) struct NotAName;

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let mut parts = text.strip_suffix(".log").ok_or(NotAName)?.split('-');
        let kind = match parts.next() {
            Some("build") => LogKind::Build,
            Some("run") => LogKind::Run,
            Some(_) | None => return Err(NotAName),
        };
        let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or(NotAName);
        let (first, run, index) = (number()?, number()?, number()?);
        let run = RunNumber::try_from(run).map_err(|_| NotAName)?;
        Ok(Self { kind, first, run, index })
    }
}

/// A file of a log. Only a log's last one is written to.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) name: Name,
    path: PathBuf,
    bytes: u64,
    /// How many lines there are; known of the file that is written to.
    lines: Option<u64>,
    /// Where every [`MARK_EVERY`]th line begins, as far as known.
    marks: Vec<u64>,
    file: Option<File>,
}

impl Chunk {
    pub(super) fn create(dir: &Path, name: Name) -> io::Result<Self> {
        let path = dir.join(name.to_string());
        let mut options = OpenOptions::new();
        options.append(true).create_new(true);
        let file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(dir)?;
                options.open(&path)?
            }
            opened => opened?,
        };
        Ok(Self { name, path, bytes: 0, lines: Some(0), marks: Vec::new(), file: Some(file) })
    }

    pub(super) fn open(dir: &Path, name: Name) -> io::Result<Self> {
        let path = dir.join(name.to_string());
        let bytes = std::fs::metadata(&path)?.len();
        Ok(Self { name, path, bytes, lines: None, marks: Vec::new(), file: None })
    }

    /// Makes ready to write on: cuts a line that a crash left torn and counts the others.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        let content = std::fs::read(&self.path)?;
        self.marks.clear();
        let (mut whole, mut lines) = (0_u64, 0_u64);
        for line in content.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            if lines.is_multiple_of(MARK_EVERY) {
                self.marks.push(whole);
            }
            whole += line.len() as u64;
            lines += 1;
        }
        let file = OpenOptions::new().append(true).open(&self.path)?;
        if whole < content.len() as u64 {
            file.set_len(whole)?;
        }
        (self.bytes, self.lines, self.file) = (whole, Some(lines), Some(file));
        Ok(())
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number, within the run, of the line that would come next. The file was created or resumed.
    pub(super) fn next_index(&self) -> u64 {
        self.name.index + self.lines.unwrap_or(0)
    }

    /// The number of the line that would come next. The file was created or resumed.
    pub(super) fn end(&self) -> u64 {
        self.name.first + self.lines.unwrap_or(0)
    }

    /// Writes encoded lines in one go. After an error the file must be resumed anew.
    pub(super) fn write<'a>(&mut self, encoded: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut lines = self.lines.unwrap_or(0);
        let mut marks = Vec::new();
        for line in encoded {
            if lines.is_multiple_of(MARK_EVERY) {
                marks.push(self.bytes + buffer.len() as u64);
            }
            buffer.extend_from_slice(line);
            lines += 1;
        }
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("a log file that was not opened for writing"))?;
        file.write_all(&buffer)?;
        self.bytes += buffer.len() as u64;
        self.lines = Some(lines);
        self.marks.append(&mut marks);
        Ok(())
    }

    /// At most `lines_max` lines from number `since` on; none when the file ends before that.
    pub(super) fn read(&self, since: u64, lines_max: usize) -> io::Result<Vec<LogLine>> {
        let wanted = since.saturating_sub(self.name.first);
        if self.lines.is_some_and(|lines| wanted >= lines) {
            return Ok(Vec::new());
        }
        let mark = usize::try_from(wanted / MARK_EVERY).unwrap_or(usize::MAX).min(self.marks.len().saturating_sub(1));
        let (start, passed) = self.marks.get(mark).map_or((0, 0), |start| (*start, mark as u64 * MARK_EVERY));
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut content = Vec::new();
        // Only what is known to be whole lines: the file may be growing.
        file.take(self.bytes - start).read_to_end(&mut content)?;
        let skipped = usize::try_from(wanted - passed).unwrap_or(usize::MAX);
        let lines = content.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        Ok(lines.skip(skipped).take(lines_max).map(decode).collect())
    }

    /// Lets go of the open file; the chunk is only read from now on.
    pub(super) fn close(&mut self) {
        self.file = None;
        self.marks = Vec::new();
    }

    pub(super) fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// One line as it is stored; JSON escapes what would break it.
pub(super) fn encode(line: &LogLine) -> Vec<u8> {
    let mut encoded = serde_json::to_vec(line).expect("a log line is text, a number and a flag");
    encoded.push(b'\n');
    encoded
}

/// A damaged line keeps its number.
fn decode(encoded: &[u8]) -> LogLine {
    serde_json::from_slice(encoded).unwrap_or_else(|_| LogLine {
        text: "[gridsocket: this line of the log is damaged]\n".to_owned(),
        at_ms: UnixMillis(0),
        stderr: true,
    })
}
