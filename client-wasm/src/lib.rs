//! The core of the page, for a browser: it computes the ids and folds the records that the broker does, with the same code.
//!
//! This file is the surface that JavaScript sees and holds no rules; those that broker and page share are in `protocol`, those of the
//! page alone in the modules here. None of them knows a browser: their tests run natively, those of this surface in WebAssembly.

pub mod logs;
pub mod metaframe;
pub mod pipe;

use protocol::canonical;
use protocol::id::{QueueKey, QueueName};
use protocol::json;
use protocol::queue::QueueState;
use wasm_bindgen::prelude::{JsError, wasm_bindgen};

/// The id of the job that `definition_json` describes, as 64 hex digits.
///
/// # Errors
///
/// When the text is not JSON.
#[wasm_bindgen]
pub fn job_id(definition_json: &str) -> Result<String, JsError> {
    let definition = json::parse(definition_json.as_bytes())?;
    Ok(canonical::job_id(&definition).to_string())
}

/// The key under which the queue of that name is stored, as 32 hex digits. One way: the name cannot be read back from it.
///
/// # Errors
///
/// When it is no queue name: empty, too long, or with a slash or control characters.
#[wasm_bindgen]
pub fn queue_key(name: &str) -> Result<String, JsError> {
    let name: QueueName = name.parse()?;
    Ok(QueueKey::of(&name).to_string())
}

/// A queue's state, folded from its records in order.
#[wasm_bindgen]
pub struct QueueFold {
    state: QueueState,
}

#[wasm_bindgen]
impl QueueFold {
    /// The state of queue `name` before its first record.
    ///
    /// # Errors
    ///
    /// When it is no queue name.
    #[wasm_bindgen(constructor)]
    pub fn new(name: &str) -> Result<Self, JsError> {
        let name: QueueName = name.parse()?;
        Ok(Self { state: QueueState::new(QueueKey::of(&name)) })
    }

    /// The same for whoever knows only the queue's key, as a log exported for audit does.
    ///
    /// # Errors
    ///
    /// When `key` is not 32 hex digits.
    pub fn of_key(key: &str) -> Result<Self, JsError> {
        let key: QueueKey = key.parse()?;
        Ok(Self { state: QueueState::new(key) })
    }

    /// Folds the stored bytes of the next record.
    ///
    /// # Errors
    ///
    /// When they are not a record, or a record is missing before them; the state is then unchanged. A record of another queue
    /// is not told from one of this queue here, but by the head's hash, which differs.
    pub fn apply_record(&mut self, bytes: &[u8]) -> Result<(), JsError> {
        self.state.apply_bytes(bytes)?;
        Ok(())
    }

    /// Goes to the state that a snapshot's bytes hold.
    ///
    /// # Errors
    ///
    /// When they are not a state or are of another queue; the state is then unchanged.
    pub fn load_snapshot(&mut self, bytes: &[u8]) -> Result<(), JsError> {
        let state = QueueState::decode(bytes)?;
        if state.queue() != self.state.queue() {
            return Err(JsError::new("the snapshot is of another queue"));
        }
        self.state = state;
        Ok(())
    }

    /// The canonical hash of the state, as 64 hex digits: equal states have equal hashes, wherever they were folded.
    #[must_use]
    pub fn state_hash(&self) -> String {
        self.state.hash().to_string()
    }

    /// The position of the last record folded, 0 before the first. A JavaScript number: exact up to 2^53.
    #[must_use]
    pub fn seq(&self) -> f64 {
        self.state.head().seq as f64
    }

    /// The chain hash up to the last record folded, as 64 hex digits.
    #[must_use]
    pub fn head_hash(&self) -> String {
        self.state.head().hash.to_string()
    }
}
