//! `PUT /f/:key`: bytes through us, or their sender to the bucket.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;

use super::{key, send_on};
use crate::blobs::{BlobError, BlobKey, CHECKSUM, Sum, WayIn};
use crate::config::Flavour;
use crate::http::app::AppState;
use crate::http::error::ApiError;
use crate::http::params::{self, Params};
use crate::http::reply;
use crate::http::room::{Room, Taken};

/// `PUT /f/:key`
pub(in crate::http) async fn put(
    State(app): State<AppState>,
    params: Params,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (head, mut body) = request.into_parts();
    let idle = app.config.limits.body_idle_timeout;
    let bytes_max = app.blobs.bytes_max();
    let mut gathered = Gathered::new(&app);
    let way = match key(&params) {
        Ok(_) if params::content_length(&head.headers).is_some_and(|length| length > bytes_max) => {
            Err(BlobError::TooLarge(bytes_max).into())
        }
        Ok(key) => way_in(&app, &key, &head.headers).await.map(|way| (key, way)),
        Err(error) => Err(error),
    };
    let stored = match way {
        Ok((_, WayIn::At(address))) => {
            leave_unread(&head.headers, body);
            return send_on(&address);
        }
        Ok((key, WayIn::Stored)) => {
            leave_unread(&head.headers, body);
            Ok(key)
        }
        Ok((key, WayIn::Here)) => {
            let pieces = stream::unfold((&mut body, &mut gathered), |(body, gathered)| async move {
                gathered.give_back();
                let piece = params::piece(body, idle).await.transpose()?;
                let piece = piece.and_then(|piece| gathered.add(&piece).map(|()| piece));
                Some((piece, (body, gathered)))
            });
            let stored = app.blobs.put(&key, pieces).await.map(|_| key).map_err(told);
            drop(gathered);
            // Of a sender that fell silent there is nothing to wait for.
            if stored.as_ref().is_err_and(|error| error.status() != StatusCode::REQUEST_TIMEOUT) {
                params::drain(body).await;
            }
            stored
        }
        Err(error) => {
            params::drain(body).await;
            Err(error)
        }
    };
    stored.map(|key| reply::text(StatusCode::OK, format!("file saved to f/{key}")))
}

/// Which way an upload goes: where its sender is sent to, only what S3 can take arrives.
pub(in crate::http) async fn way_in(app: &AppState, key: &BlobKey, headers: &HeaderMap) -> Result<WayIn, ApiError> {
    let sum = match headers.get(CHECKSUM) {
        None => None,
        Some(sum) => Some(sum.to_str().ok().and_then(Sum::from_base64).ok_or_else(|| {
            let message = "x-amz-checksum-sha256 is the base64 of the sha256 of the bytes that follow";
            ApiError::bad("bad_checksum", message)
        })?),
    };
    if app.config.flavour == Flavour::Local || headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(WayIn::Here);
    }
    Ok(app.blobs.way_in(key, sum, params::content_length(headers)).await?)
}

/// Lets a body go that is not wanted. A sender that asks first is not told to go on; others are read from for a while, beside
/// the answer, so that they see it instead of a broken connection.
fn leave_unread(headers: &HeaderMap, body: Body) {
    if !headers.contains_key(header::EXPECT) {
        tokio::spawn(params::drain(body));
    }
}

/// The room that an upload takes: for what the store has been given and has not written yet. It writes when it is given more
/// after the first part, and then each time that as many bytes are there.
struct Gathered<'a> {
    room: &'a Room,
    part_bytes: u64,
    taken: Taken,
    bytes: u64,
    is_large: bool,
    is_written: bool,
}

impl<'a> Gathered<'a> {
    fn new(app: &'a AppState) -> Self {
        Self::with(&app.room, app.blobs.part_bytes() as u64)
    }

    fn with(room: &'a Room, part_bytes: u64) -> Self {
        Self { room, part_bytes, taken: Taken::default(), bytes: 0, is_large: false, is_written: false }
    }

    /// A piece that goes to the store next.
    fn add(&mut self, piece: &Bytes) -> Result<(), ApiError> {
        self.bytes += piece.len() as u64;
        self.room.hold(&mut self.taken, self.bytes)?;
        let is_part = self.bytes >= self.part_bytes;
        self.is_written = is_part && self.is_large;
        self.is_large |= is_part;
        Ok(())
    }

    /// The store asks for more: it is done with what it was given.
    fn give_back(&mut self) {
        if std::mem::take(&mut self.is_written) {
            (self.bytes, self.taken) = (0, Taken::default());
        }
    }
}

/// A body that broke off, stalled or found no room says so itself.
fn told(error: BlobError) -> ApiError {
    let BlobError::BrokenOff(source) = error else { return error.into() };
    match source.downcast::<ApiError>() {
        Ok(own) => *own,
        Err(source) => BlobError::BrokenOff(source).into(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn an_upload_has_room_for_all_that_is_not_written_yet() {
        const PIECE: usize = 60_000;
        let folder = tempfile::TempDir::new().unwrap();
        let blobs =
            crate::blobs::Blobs::open(&crate::config::BlobsUrl::Folder(folder.path().into()), u64::MAX).await.unwrap();
        let written = || -> u64 {
            let files = std::fs::read_dir(folder.path().join("uploads")).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        let room = Room::new(u64::MAX);
        let mut gathered = Gathered::with(&room, blobs.part_bytes() as u64);
        let pieces = stream::iter(0..100_u64).map(|number| {
            gathered.give_back();
            assert_eq!(written() + gathered.bytes, number * PIECE as u64);
            let piece = Bytes::from_static(&[0; PIECE]);
            gathered.add(&piece).map(|()| piece)
        });
        blobs.put(&"key".parse().unwrap(), pieces).await.unwrap();
        assert!(gathered.is_large);
    }
}
