//! An S3 server of a test's own: it checks signatures, also those of addresses, and keeps its objects as files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::RwLock;

pub(crate) const KEY_ID: &str = "the-key-id";
pub(crate) const SECRET: &str = "the-secret";
pub(crate) const BUCKET: &str = "blobs-here";

/// A server with one bucket, which is there until this is dropped.
pub(crate) struct S3Server {
    pub(crate) endpoint: String,
    folder: TempDir,
    pub(crate) seen: Arc<Seen>,
    task: tokio::task::JoinHandle<()>,
}

/// What the server was asked, and what it does then.
#[derive(Default)]
pub(crate) struct Seen {
    /// The objects that were read.
    reads: Mutex<Vec<String>>,
    parts: Mutex<Vec<i64>>,
    aborts: Mutex<u32>,
    /// A file, and what is written to it before the next object is read.
    swap: Mutex<Option<(PathBuf, Vec<u8>)>>,
    /// What the name of an object has in it that cannot be copied.
    uncopied: Mutex<Option<String>>,
}

impl S3Server {
    /// A server that holds clients to what an address was signed for, as Amazon's does.
    pub(crate) async fn strict() -> Self {
        Self::start(true).await
    }

    /// A server that looks at signatures alone, as others do.
    pub(crate) async fn lax() -> Self {
        Self::start(false).await
    }

    async fn start(is_strict: bool) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let seen = Arc::new(Seen::default());
        let files = FileSystem::new(folder.path()).unwrap();
        let store = Store {
            files,
            root: folder.path().to_owned(),
            is_strict,
            seen: Arc::clone(&seen),
            copying: RwLock::new(()),
        };
        let mut builder = S3ServiceBuilder::new(store);
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { endpoint, folder, seen, task }
    }

    /// What to give to a broker as `--blobs`, with `more` of its settings.
    pub(crate) fn url(&self, prefix: &str, more: &str) -> String {
        format!("s3://{BUCKET}{prefix}?endpoint={}{more}", self.endpoint)
    }

    /// The variables that a broker needs.
    pub(crate) fn variable(name: &str) -> Option<String> {
        match name {
            "AWS_ACCESS_KEY_ID" => Some(KEY_ID.to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some(SECRET.to_owned()),
            _ => None,
        }
    }

    /// The names of all objects below `prefix`, sorted.
    pub(crate) fn objects(&self, prefix: &str) -> Vec<String> {
        let root = self.folder.path().join(BUCKET);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.retain(|name| name.starts_with(prefix));
        found.sort();
        found
    }

    /// The file that an object is.
    pub(crate) fn file(&self, object: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(object)
    }

    /// Copies of objects with this in their name fail from now on.
    pub(crate) fn refuse_copies_of(&self, name: &str) {
        *self.seen.uncopied.lock().unwrap() = Some(name.to_owned());
    }

    /// Writes `bytes` into that object in the moment before the next one is read.
    pub(crate) fn swap_before_next_read(&self, object: &str, bytes: &[u8]) {
        *self.seen.swap.lock().unwrap() = Some((self.file(object), bytes.to_vec()));
    }

    /// Which objects below `prefix` were read, in order.
    pub(crate) fn reads(&self, prefix: &str) -> Vec<String> {
        self.seen.reads.lock().unwrap().iter().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// The sizes of all parts of uploads that came in.
    pub(crate) fn parts(&self) -> Vec<i64> {
        self.seen.parts.lock().unwrap().clone()
    }

    /// How many uploads in parts were called off.
    pub(crate) fn aborts(&self) -> u32 {
        *self.seen.aborts.lock().unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Store {
    files: FileSystem,
    root: PathBuf,
    is_strict: bool,
    seen: Arc<Seen>,
    /// The files are copied bit by bit; an object is there at once.
    copying: RwLock<()>,
}

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for Store {
    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        if !self.root.join(&req.input.bucket).exists() {
            return Err(s3_error!(NoSuchBucket));
        }
        if let (true, Some(promised)) = (self.is_strict, req.input.checksum_sha256.clone()) {
            let mut body = req.input.body.take().map(s3s::Body::from).unwrap_or_default();
            let bytes = body.store_all_limited(1 << 30).await.map_err(|_| s3_error!(IncompleteBody))?;
            if promised != STANDARD.encode(Sha256::digest(&bytes)) {
                return Err(s3_error!(BadDigest));
            }
            req.input.body = Some(s3s::Body::from(bytes).into());
        }
        let _whole = self.copying.write().await;
        self.files.put_object(req).await
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let _whole = self.copying.read().await;
        if let Some((file, bytes)) = self.seen.swap.lock().unwrap().take() {
            std::fs::write(file, bytes).unwrap();
        }
        self.seen.reads.lock().unwrap().push(req.input.key.clone());
        self.files.get_object(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let _whole = self.copying.read().await;
        self.files.head_object(req).await
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        if self.is_strict && req.uri.query().unwrap_or_default().contains("X-Amz-Signature") {
            return Err(s3_error!(AccessDenied, "There were headers present in the request which were not signed"));
        }
        let source = format!("{:?}", req.input.copy_source);
        if self.seen.uncopied.lock().unwrap().as_ref().is_some_and(|name| source.contains(name)) {
            return Err(s3_error!(AccessDenied, "told to refuse it"));
        }
        let _whole = self.copying.write().await;
        self.files.copy_object(req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        self.files.delete_object(req).await
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        self.files.delete_objects(req).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        self.files.list_objects_v2(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        self.files.create_multipart_upload(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        self.seen.parts.lock().unwrap().extend(req.input.content_length);
        self.files.upload_part(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        self.files.complete_multipart_upload(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        *self.seen.aborts.lock().unwrap() += 1;
        self.files.abort_multipart_upload(req).await
    }
}
