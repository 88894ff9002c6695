//! Reading what a submitter or a worker sends, before it reaches a queue: done by the socket's own task, so that a queue's
//! task never parses or hashes a body.

use std::sync::Arc;

use protocol::definition::{DataKind, DataRef, Definition, Needs};
use protocol::event::Via;
use protocol::id::{Digest, JobId, Namespace};
use protocol::native::Callbacks;
use protocol::raw::RawJson;

use crate::blob_names;
use crate::blob_uses::BlobUses;
use crate::refusal::{Refusal, RefusalKind};

/// The most bytes of a definition, 10 MiB: inline inputs fit, and anything larger belongs into a blob.
pub const DEFINITION_BYTES_MAX: usize = 10 * 1024 * 1024;

/// The most bytes of a run's result, 14 MiB: it holds up to 8 MiB of log lines and must fit into one frame.
pub const RESULT_BYTES_MAX: usize = 14 * 1024 * 1024;

/// The most bytes of all of a job's tags: they are part of a record.
const TAGS_BYTES_MAX: usize = 1024;

/// A job as a submitter hands it in.
#[derive(Clone, Debug)]
pub struct SubmitJob {
    /// What the submitter believes the id to be.
    pub id: Option<JobId>,
    /// The definition's JSON text.
    pub definition: RawJson,
    /// Who wants it; the default namespace when absent.
    pub namespace: Option<Namespace>,
    /// Higher goes first.
    pub priority: i32,
    /// Whether debug output is wanted.
    pub debug: bool,
    /// Whether a job that has ended without success is to run again, instead of being answered with how it ended.
    pub retry: bool,
    /// Addresses to call.
    pub callbacks: Callbacks,
    /// How it came in.
    pub via: Via,
}

/// A definition that was read and found acceptable.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) job: JobId,
    pub(crate) body: Digest,
    pub(crate) text: Arc<[u8]>,
    pub(crate) needs: Needs,
}

/// Reads a definition, checks what must hold for every job, and notes the blobs that it names.
///
/// # Errors
///
/// [`Refusal`] when it is too large, no JSON object, names files outside their folders, or is not the definition of `id`.
pub(crate) fn check(id: Option<JobId>, definition: &RawJson, uses: &BlobUses) -> Result<Checked, Refusal> {
    let bytes = definition.as_str().as_bytes();
    if bytes.len() > DEFINITION_BYTES_MAX {
        let text = format!(
            "definition is {} bytes, the limit is {DEFINITION_BYTES_MAX}; upload large inputs with PUT /f/<sha256> and refer to them",
            bytes.len()
        );
        return Err(Refusal::new(RefusalKind::TooLarge, "definition_too_large", text));
    }
    let bad = |code, text: String| Refusal::new(RefusalKind::BadRequest, code, text);
    let read = Definition::parse(bytes).map_err(|error| bad("bad_definition", format!("definition: {error}")))?;
    read.check_names().map_err(|error| bad("bad_file_name", error.to_string()))?;
    let job = read.job_id();
    if let Some(claimed) = id.filter(|claimed| *claimed != job) {
        return Err(bad("id_mismatch", format!("id {claimed} is not the hash of the definition, which is {job}")));
    }
    let needs = read.needs();
    let tags_bytes: usize = needs.tags.iter().map(String::len).sum();
    if tags_bytes + 3 * needs.tags.len() > TAGS_BYTES_MAX {
        return Err(Refusal::new(
            RefusalKind::TooLarge,
            "tags_too_large",
            format!(
                "definition.tags are {tags_bytes} bytes in {} tags, the limit is about {TAGS_BYTES_MAX}",
                needs.tags.len()
            ),
        ));
    }
    uses.note_all(|note| each_blob(&read, bytes, note));
    Ok(Checked { job, body: Digest::of(bytes), text: bytes.into(), needs })
}

/// Shows the keys of the blobs that a definition names, some of them maybe twice.
fn each_blob(read: &Definition, bytes: &[u8], mut show: &mut dyn FnMut(&str)) {
    blob_names::each_likely(bytes, &mut show);
    let files = read.inputs.iter().chain(&read.config_files).map(|(_, file)| file);
    files.filter(|file| file.kind == DataKind::Key).filter_map(DataRef::text).for_each(|key| show(&key));
}

/// Checks a run's result.
///
/// # Errors
///
/// [`Refusal`] when it is too large or no JSON.
pub(crate) fn check_result(finished: &RawJson) -> Result<(Digest, Arc<[u8]>), Refusal> {
    let bytes = finished.as_str().as_bytes();
    if bytes.len() > RESULT_BYTES_MAX {
        let text = format!(
            "finished is {} bytes, the limit is {RESULT_BYTES_MAX}; keep fewer log lines in the result",
            bytes.len()
        );
        return Err(Refusal::new(RefusalKind::TooLarge, "result_too_large", text));
    }
    if let Err(error) = serde_json::from_slice::<&serde_json::value::RawValue>(bytes) {
        return Err(Refusal::new(RefusalKind::BadRequest, "bad_result", format!("finished is not JSON: {error}")));
    }
    Ok((Digest::of(bytes), bytes.into()))
}
