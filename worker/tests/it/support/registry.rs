//! A real registry (the program `docker-registry`), and a connection to it that breaks.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bollard::auth::DockerCredentials;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ListImagesOptionsBuilder, PushImageOptionsBuilder, RemoveImageOptions,
    RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::TestEngine;
use super::own_engine::OwnEngine;
use super::peer::until;

const PROGRAM: &str = "docker-registry";
pub(crate) const USER: &str = "me";
/// With what base64 spells with `/` and `+`: the two spellings of base64 differ there.
pub(crate) const PASSWORD: &str = "a?b>c~d?e>f~g??";
const HTPASSWD: &str = "me:$2y$05$zlDlHadrIvf7iS4Am7ntZeOxduw5L3o63hCb3P75XY6D4sO/SFD8u\n";
/// How much a connection that is to break lets through: all that describes an image, and a part of its layer.
const CUT_BYTES: usize = 64 * 1024;
const LAYER_BYTES: usize = 512 * 1024;

/// A registry on this machine, which every Engine here takes without TLS.
pub(crate) struct Registry {
    processes: Vec<Child>,
    pub(crate) host: String,
    has_logins: bool,
    data: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Registry {
    /// `None` (and a word about it) where the program is not installed.
    pub(crate) async fn start(has_logins: bool) -> Option<Self> {
        let (data, port) = (TempDir::new().unwrap(), free_port().await);
        let root = data.path();
        std::fs::write(root.join("htpasswd"), HTPASSWD).unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", root.join("htpasswd").display());
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}', secret: s}}\n{}",
            root.join("data").display(),
            if has_logins { &auth } else { "" }
        );
        std::fs::write(root.join("config.yml"), config).unwrap();
        let started = Command::new(PROGRAM)
            .arg("serve")
            .arg(root.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) if std::env::var("GRIDSOCKET_TEST_REGISTRY").is_ok_and(|value| value == "required") => {
                panic!("{PROGRAM} is required, but does not start: {error}")
            }
            Err(error) => {
                println!("skipped: no {PROGRAM} ({error})");
                return None;
            }
        };
        let host = format!("127.0.0.1:{port}");
        until("the registry listens", async || TcpStream::connect(&host).await.is_ok()).await;
        Some(Self { processes: vec![process], host, has_logins, data })
    }

    /// It is there, at the same address, in the network of an Engine that has one of its own, too.
    pub(crate) async fn is_also_at(&mut self, engine: &OwnEngine) {
        let network = format!("/proc/{}/ns/net", engine.pid());
        let inside = || {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={network}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        assert!(inside().args(["ip", "link", "set", "lo", "up"]).status().unwrap().success());
        let config = self.data.path().join("config.yml");
        self.processes.push(inside().args([PROGRAM, "serve"]).arg(config).spawn().unwrap());
        let port: u16 = self.host.rsplit_once(':').unwrap().1.parse().unwrap();
        let (sockets, address) =
            (format!("/proc/{}/net/tcp", engine.pid()), format!(" 0100007F:{port:04X} 00000000:0000 "));
        let listens = async || std::fs::read_to_string(&sockets).unwrap().contains(&address);
        until("the registry listens there, too", listens).await;
    }

    fn login(&self) -> Option<DockerCredentials> {
        self.has_logins.then(|| DockerCredentials {
            username: Some(USER.to_owned()),
            password: Some(PASSWORD.to_owned()),
            ..DockerCredentials::default()
        })
    }

    /// Publishes an image that says `word` when it runs, with a layer that no Engine has; gives its name.
    pub(crate) async fn publish(&self, engine: &TestEngine, name: &str, word: &str) -> String {
        let full = format!("{}/{name}", self.host);
        make(engine, &full, word).await;
        self.push(engine, &full).await;
        forget(engine, &full).await;
        full
    }

    async fn push(&self, engine: &TestEngine, full: &str) {
        let (repository, tag) = full.rsplit_once(':').unwrap();
        let options = PushImageOptionsBuilder::default().tag(tag).build();
        let docker = readable(engine.docker.clone());
        let mut events = docker.push_image(repository, Some(options), self.login());
        while let Some(event) = events.next().await {
            let event = event.unwrap();
            assert!(event.error_detail.is_none(), "{event:?}");
        }
    }
}

/// The client spells logins in one base64 and the Engine reads them in the other.
fn readable(docker: bollard::Docker) -> bollard::Docker {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    docker.with_request_modifier(|mut request| {
        if let Some(value) = request.headers_mut().get_mut("x-registry-auth") {
            *value = URL_SAFE.encode(STANDARD.decode(value.as_bytes()).unwrap()).parse().unwrap();
        }
        request
    })
}

/// Makes an image with a file of its own and bytes that do not shrink; its mark is its registry.
pub(crate) async fn make(engine: &TestEngine, full: &str, word: &str) {
    let mut root = tar::Builder::new(Vec::new());
    let busybox = engine.busybox_layer().await;
    let mut archive = tar::Archive::new(busybox.as_slice());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let mut program = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut program).unwrap();
    let noise: Vec<u8> = (0..LAYER_BYTES / 16).flat_map(|_| *uuid::Uuid::new_v4().as_bytes()).collect();
    for (name, content) in [("busybox", program.as_slice()), ("word", word.as_bytes()), ("noise", noise.as_slice())] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        root.append_data(&mut header, name, content).unwrap();
    }
    let (repository, tag) = full.rsplit_once(':').unwrap();
    let mark = full.split('/').next().unwrap();
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(repository).tag(tag);
    let options = options.changes(vec![format!("LABEL {LABEL}={mark}")]).build();
    let body = bollard::body_full(root.into_inner().unwrap().into());
    let mut events = engine.docker.create_image(Some(options), Some(body), None);
    while let Some(event) = events.next().await {
        event.unwrap();
    }
}

pub(crate) async fn tag(engine: &TestEngine, from: &str, to: &str) {
    let (repository, tag) = to.rsplit_once(':').unwrap();
    let options = TagImageOptionsBuilder::default().repo(repository).tag(tag).build();
    engine.docker.tag_image(from, Some(options)).await.unwrap();
}

/// The label of images that tests make. Its value is the test's own.
pub(crate) const LABEL: &str = "gridsocket.test";

/// Takes a name away.
pub(crate) async fn forget(engine: &TestEngine, full: &str) {
    let _ = engine.docker.remove_image(full, None::<RemoveImageOptions>, None).await;
}

/// Removes all images with that mark, with and without names, as soon as their containers are gone.
pub(crate) async fn clear(engine: &TestEngine, mark: &str) {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL}={mark}")])]);
    until("the test's images are gone", async || {
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        let images = engine.docker.list_images(Some(options)).await.unwrap();
        for image in &images {
            let options = RemoveImageOptionsBuilder::default().force(true).build();
            let _ = engine.docker.remove_image(&image.id, Some(options), None).await;
        }
        images.is_empty()
    })
    .await;
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// A way to a registry that can be made to break in the middle of a layer, and then to be as if nothing was there.
pub(crate) struct Broken {
    pub(crate) host: String,
    pub(crate) is_broken: Arc<AtomicBool>,
    pub(crate) cuts: Arc<AtomicUsize>,
}

impl Broken {
    pub(crate) async fn before(registry: &Registry) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (is_broken, cuts) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
        let (broken, counted, behind) = (Arc::clone(&is_broken), Arc::clone(&cuts), registry.host.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, behind.clone(), Arc::clone(&broken), Arc::clone(&counted)));
            }
        });
        Self { host, is_broken, cuts }
    }
}

async fn pass(mut client: TcpStream, behind: String, is_broken: Arc<AtomicBool>, cuts: Arc<AtomicUsize>) {
    if is_broken.load(Ordering::Relaxed) && cuts.load(Ordering::Relaxed) > 0 {
        let mut request = [0; 4096];
        let _ = client.read(&mut request).await;
        let _ = client.write_all(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    let Ok(mut server) = TcpStream::connect(behind).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let back = async {
        let (mut passed, mut chunk) = (0, vec![0; 8192]);
        while let Ok(read @ 1..) = from_server.read(&mut chunk).await {
            passed += read;
            if is_broken.load(Ordering::Relaxed) && passed > CUT_BYTES {
                cuts.fetch_add(1, Ordering::Relaxed);
                return;
            }
            if to_client.write_all(&chunk[..read]).await.is_err() {
                return;
            }
        }
    };
    let forth = tokio::io::copy(&mut from_client, &mut to_server);
    tokio::select! {
        () = back => {}
        _ = forth => {}
    }
}
