//! Submitters that leave.

use std::sync::mpsc;

use super::*;

#[test]
fn a_webhook_whose_submitter_leaves_is_looked_up_only_once_its_file_is_there() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    runtime.block_on(async {
        let book = Book::open(folder.path(), Limits::default(), Policy::default()).unwrap();
        let (go_on, waits) = mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || waits.recv());
        let queued = Callback { url: "https://example.org/".to_owned(), payload: None };
        let callbacks = Callbacks { queued: Some(queued), finished: None };
        let (queue, namespace) = ("q".parse().unwrap(), Namespace::default());
        let admitting = book.admit(&queue, JobId::from_bytes([1; 32]), &namespace, 0, callbacks);
        tokio::select! {
            biased;
            _ = admitting => panic!("the disk is busy"),
            () = std::future::ready(()) => {}
        }
        assert!(book.state().take_looks().is_none(), "its file would come after it was forgotten, and stay");
        go_on.send(()).unwrap();
        busy.await.unwrap().unwrap();
        let (_, ids) = book.next_looks().await;
        let id = ids.into_iter().next().unwrap();
        assert!(book.stored(id).await.is_ok());
        book.looked(id, Found::default());
        // Behind the removal, in the same thread.
        assert!(book.stored(id).await.is_err());
        assert_eq!(book.stats().kept, 0);
    });
}
