//! Room in memory: what all requests together may hold of what they have received, and all answers of what is not sent yet.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Room is given in pieces of this many bytes.
const PIECE_BYTES: u64 = 1024;

/// The room of all requests, or of all answers. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pieces: Arc<Semaphore>,
    bytes_max: u64,
    of: Of,
}

/// What a room is for.
#[derive(Clone, Copy, Debug)]
enum Of {
    Bodies,
    Answers,
}

/// Room that one request has; given back when dropped.
#[derive(Debug, Default)]
pub(super) struct Taken(Option<OwnedSemaphorePermit>);

impl Room {
    /// Room for what comes in.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self::of(bytes_max, Of::Bodies)
    }

    /// Room for what goes out.
    pub(super) fn for_answers(bytes_max: u64) -> Self {
        Self::of(bytes_max, Of::Answers)
    }

    fn of(bytes_max: u64, of: Of) -> Self {
        let pieces = usize::try_from(bytes_max / PIECE_BYTES).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { pieces: Arc::new(Semaphore::new(pieces)), bytes_max, of }
    }

    fn full(&self) -> ApiError {
        let (code, what) = match self.of {
            Of::Bodies => ("bodies_full", "requests that are under way"),
            Of::Answers => ("answers_full", "answers that are not read yet"),
        };
        let message =
            format!("the broker holds {} bytes of {what}, which is the limit; try again in a moment", self.bytes_max);
        ApiError::request(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// Takes room for so many bytes more. Does not wait: those who have some would wait for each other.
    ///
    /// # Errors
    ///
    /// 503 when there is none.
    pub(super) fn take(&self, taken: &mut Taken, bytes: u64) -> Result<(), ApiError> {
        let pieces = u32::try_from(bytes.div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.pieces).try_acquire_many_owned(pieces).map_err(|_| self.full())?;
        match &mut taken.0 {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }

    /// Takes or gives back until what is taken is room for so many bytes.
    ///
    /// # Errors
    ///
    /// As [`Room::take`].
    pub(super) fn hold(&self, taken: &mut Taken, bytes: u64) -> Result<(), ApiError> {
        let wanted = usize::try_from(bytes.div_ceil(PIECE_BYTES)).unwrap_or(usize::MAX);
        let held = taken.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted > held {
            return self.take(taken, (wanted - held) as u64 * PIECE_BYTES);
        }
        drop(taken.0.as_mut().and_then(|permit| permit.split(held - wanted)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_held_for_as_much_as_there_is() {
        let room = Room::new(10 * PIECE_BYTES);
        let mut held = Taken::default();
        for pieces in [0, 3, 10, 4, 4, 0, 10] {
            room.hold(&mut held, pieces * PIECE_BYTES).unwrap();
            assert_eq!(room.pieces.available_permits() as u64, 10 - pieces);
        }
        assert!(room.hold(&mut held, 10 * PIECE_BYTES + 1).is_err());
    }

    #[test]
    fn room_is_given_back() {
        let room = Room::new(10 * PIECE_BYTES);
        let mut one = Taken::default();
        room.take(&mut one, 6 * PIECE_BYTES).unwrap();
        room.take(&mut one, PIECE_BYTES).unwrap();
        let mut other = Taken::default();
        assert!(room.take(&mut other, 4 * PIECE_BYTES).is_err());
        room.take(&mut other, 1).unwrap();
        drop(one);
        room.take(&mut other, 9 * PIECE_BYTES).unwrap();
    }
}
