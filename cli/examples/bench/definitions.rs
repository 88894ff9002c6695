//! The jobs that are measured with: small, and each distinct.

use protocol::native::{Submission, ToBroker};
use protocol::raw::RawJson;

/// Whether any worker of the bench could run it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Any worker.
    Plain,
    /// It needs a GPU, and none has one.
    Never,
}

const MARK: &str = "\"JOB\":\"";

/// A definition of about 120 bytes.
pub(crate) fn definition(series: &str, number: u64, fit: Fit) -> String {
    let needs = match fit {
        Fit::Plain => "",
        Fit::Never => r#","requirements":{"gpus":1}"#,
    };
    format!(
        r#"{{"image":"alpine:3.20","command":"sh -c 'cat /inputs/words | wc -w'","env":{{"SERIES":"{series}",{MARK}{number:012}"}}{needs}}}"#
    )
}

/// The number in a definition.
pub(crate) fn number_of(definition: &str) -> Option<u64> {
    let (_, rest) = definition.split_once(MARK)?;
    rest.get(..12)?.parse().ok()
}

/// The message that submits it.
pub(crate) fn submit(req: u64, series: &str, number: u64, fit: Fit) -> ToBroker {
    let definition = RawJson::new(definition(series, number, fit));
    ToBroker::Submit {
        req,
        job: Submission {
            id: None,
            definition,
            namespace: None,
            priority: 0,
            debug: false,
            retry: false,
            callbacks: protocol::native::Callbacks::default(),
        },
    }
}
