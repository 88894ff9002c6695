//! Both images, and a network of its own for what one test starts; all of it goes when the test ends, however it ends.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use protocol::id::{QueueKey, QueueName};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::run::{Said, gridsocket};

/// How long anything may take before the test counts it as hung: machines that build beside it are slow.
const DEADLINE: Duration = Duration::from_secs(150);
/// The names that both images go by when somebody has built them already.
const WORKER_IMAGE: &str = "GRIDSOCKET_TEST_WORKER_IMAGE";
const BROKER_IMAGE: &str = "GRIDSOCKET_TEST_BROKER_IMAGE";

/// What one test has of the Engine.
pub(crate) struct Site {
    pub(crate) worker_image: String,
    pub(crate) broker_image: String,
    pub(crate) job_image: String,
    pub(crate) queue: String,
    /// Its path is the same for the Engine, as `/tmp` is mounted.
    pub(crate) data: TempDir,
    name: String,
    socket: String,
}

impl Site {
    /// `None` (and a word about it) where there is no Engine, or no `docker` to give it the commands with.
    pub(crate) fn find() -> Option<Self> {
        match Self::try_find() {
            Ok(site) => Some(site),
            Err(why) if std::env::var("GRIDSOCKET_TEST_ENGINE").is_ok_and(|value| value == "required") => {
                panic!("a Docker Engine is required: {why}")
            }
            Err(why) => {
                println!("skipped: {why}");
                None
            }
        }
    }

    fn try_find() -> Result<Self, String> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        let socket = host.strip_prefix("unix://").ok_or("the Engine's socket is no file that can be mounted")?;
        if Command::new("docker").arg("--version").output().is_err() {
            return Err("no docker command line".to_owned());
        }
        if docker(&["info", "--format", "{{.ID}}"]).code != Some(0) {
            return Err(format!("no Docker Engine answers at {host}"));
        }
        let job_image =
            std::env::var("GRIDSOCKET_TEST_IMAGE").unwrap_or_else(|_| "gridsocket/busybox:local".to_owned());
        if docker(&["image", "inspect", &job_image]).code != Some(0) {
            return Err(format!("the Engine has no {job_image}"));
        }
        let (worker_image, broker_image) = images();
        let name = format!("gs-images-{}", uuid());
        let made = docker(&["network", "create", "--label", "gridsocket.test=images", &name]);
        assert_eq!(made.code, Some(0), "{made:?}");
        let queue = format!("{name}-queue");
        let data = TempDir::with_prefix_in("gs-images-", "/tmp").unwrap();
        Ok(Self { worker_image, broker_image, job_image, queue, data, name, socket: socket.to_owned() })
    }

    pub(crate) fn folder(&self, name: &str) -> String {
        self.data.path().join(name).display().to_string()
    }

    /// `docker run` with what is this test's own, and then the words as people write them.
    pub(crate) fn docker_run(&self, name: &str, words: &[&str]) -> Said {
        let name = self.container(name);
        let own = ["run", "--network", &self.name, "--name", &name, "--label", "gridsocket.test=images"];
        docker(&[&own, words].concat())
    }

    /// A container that is not started; its id.
    pub(crate) fn docker_create(&self, name: &str, words: &[&str]) -> String {
        let said = docker(&[&["create", "--name", &self.container(name)], words].concat());
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out.trim().to_owned()
    }

    /// A worker that runs on: the words before and after the image's name. The socket and `/tmp` are mounted as people do.
    pub(crate) fn worker(&self, name: &str, before: &[&str], after: &[&str]) {
        let socket = self.socket_mount();
        let mounts = ["-d", "-v", &socket, "-v", "/tmp:/tmp"];
        let said = self.docker_run(name, &[&mounts, before, &[self.worker_image.as_str()], after].concat());
        assert_eq!(said.code, Some(0), "{said:?}");
    }

    /// `-v /var/run/docker.sock:/var/run/docker.sock`, wherever the Engine has it.
    pub(crate) fn socket_mount(&self) -> String {
        format!("{}:/var/run/docker.sock", self.socket)
    }

    /// A broker that runs on; its address for this machine. Containers know it by [`Self::broker_inside`].
    pub(crate) async fn broker(&self, name: &str, before: &[&str]) -> String {
        let words = [&["-d", "-p", "127.0.0.1::8080"], before, &[self.broker_image.as_str()]].concat();
        let said = self.docker_run(name, &words);
        assert_eq!(said.code, Some(0), "{said:?}");
        self.address(name, 8080).await
    }

    pub(crate) fn broker_inside(&self, name: &str) -> String {
        format!("http://{}:8080", self.container(name))
    }

    /// How this machine reaches a published port, once something answers there.
    pub(crate) async fn address(&self, name: &str, port: u16) -> String {
        let said = docker(&["port", &self.container(name), &format!("{port}/tcp")]);
        let address = said.out.lines().next().unwrap_or_else(|| panic!("{said:?}")).to_owned();
        let api = format!("http://{}", address.replace("0.0.0.0", "127.0.0.1"));
        let http = http();
        let asking = async {
            while http.get(format!("{api}/healthz")).send().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let asked = tokio::time::timeout(DEADLINE, asking).await;
        assert!(asked.is_ok(), "{name} does not serve: {:?}", self.said(name));
        api
    }

    /// Submits a job from this machine and waits for its end; the options come before its command.
    pub(crate) async fn job(&self, api: &str, queue: &str, options: &[&str], command: &str) -> Said {
        let image = self.job_image.as_str();
        let fixed = ["job", "add", queue, "--api", api, "--image", image, "--wait", "-c", command];
        let waiting = gridsocket(&[&fixed, options].concat()).output();
        let ended = tokio::time::timeout(DEADLINE, waiting).await;
        ended.unwrap_or_else(|_| panic!("the job does not end: {:?}", self.said("worker"))).unwrap().into()
    }

    /// What a container has said so far.
    pub(crate) fn said(&self, name: &str) -> Said {
        docker(&["logs", &self.container(name)])
    }

    /// Waits until `docker inspect` says so.
    pub(crate) async fn until(&self, name: &str, format: &str, wanted: &str) {
        let name = self.container(name);
        let look = || docker(&["inspect", "--format", format, &name]).out;
        until(&format!("{name} is {wanted}"), look, |found| found.trim() == wanted).await;
    }

    /// Waits until no container of the queue's jobs is left.
    pub(crate) async fn until_no_jobs(&self) {
        until("no container is left", || self.jobs(&self.queue, "{{.Names}} {{.State}}").out, str::is_empty).await;
    }

    /// What this test's containers are called.
    pub(crate) fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    /// The containers of jobs of a queue, and what of them is to be shown.
    pub(crate) fn jobs(&self, queue: &str, format: &str) -> Said {
        docker(&["ps", "-a", "--filter", &format!("label=container.mtfm.io/queue={queue}"), "--format", format])
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let named = format!("name={}-", self.name);
        let containers = docker(&["ps", "-aq", "--filter", &named]).out;
        // A worker that is just looking around at the Engine puts away what it needs for that.
        docker(&[&["stop", "-t", "30"], containers.split_whitespace().collect::<Vec<_>>().as_slice()].concat());
        remove(&containers);
        remove(&self.jobs(&self.queue, "{{.ID}}").out);
        let key = QueueKey::of(&self.queue.parse::<QueueName>().unwrap());
        for filter in [format!("name={key}"), named] {
            for volume in docker(&["volume", "ls", "-q", "--filter", &filter]).out.split_whitespace() {
                docker(&["volume", "rm", volume]);
            }
        }
        docker(&["network", "rm", &self.name]);
        // What containers left there may be root's.
        let at = self.data.path().display();
        docker(&["run", "--rm", "--network", "none", "-v", &format!("{at}:/data"), &self.job_image, "sh", "-c", EMPTY]);
    }
}

/// Removes all that is in the folder, whatever its name.
const EMPTY: &str = "rm -rf /data/* /data/.[!.]*";

fn remove(containers: &str) {
    let containers: Vec<&str> = containers.split_whitespace().collect();
    if !containers.is_empty() {
        docker(&[&["rm", "-f", "-v"], containers.as_slice()].concat());
    }
}

/// Both images: those that are named, else made of the binary under test.
fn images() -> (String, String) {
    if let (Ok(worker), Ok(broker)) = (std::env::var(WORKER_IMAGE), std::env::var(BROKER_IMAGE)) {
        return (worker, broker);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_gridsocket"));
    let tag = format!("test-{}", fingerprint(root, &binary));
    let named = |what: &str| format!("gridsocket/{what}:{tag}");
    // Each test is a process of its own; the first one builds.
    let lock = File::create(std::env::temp_dir().join("gridsocket-images.lock")).unwrap();
    lock.lock().unwrap();
    if [named("worker"), named("broker")].iter().any(|image| docker(&["image", "inspect", image]).code != Some(0)) {
        docker(&["image", "prune", "-af", "--filter", "label=gridsocket.test", "--filter", "until=1h"]);
        let mut command = Command::new(root.join("deploy/image"));
        command.args(["--tag", &tag, "--label", "gridsocket.test=images", "--binary"]).arg(binary);
        let built = command.stdin(Stdio::null()).output().unwrap();
        assert!(built.status.success(), "{:?}", Said::from(built));
    }
    (named("worker"), named("broker"))
}

/// Names what the images are made of.
fn fingerprint(root: &Path, binary: &Path) -> String {
    let mut hash = Sha256::new();
    let about = std::fs::metadata(binary).unwrap();
    let changed = about.modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
    hash.update(format!("{} {}", about.len(), changed.as_nanos()));
    for part in ["deploy/image", "deploy/worker.Dockerfile", "deploy/broker.Dockerfile"] {
        hash.update(std::fs::read(root.join(part)).unwrap());
    }
    hash.finalize().iter().take(6).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn uuid() -> String {
    let bytes = TempDir::new().unwrap().path().file_name().unwrap().to_string_lossy().to_ascii_lowercase();
    let plain: String = bytes.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{plain}{}", std::process::id())
}

async fn until(what: &str, look: impl Fn() -> String, is_so: impl Fn(&str) -> bool) {
    let mut last = String::new();
    let looking = async {
        loop {
            last = look();
            if is_so(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, looking).await;
    assert!(found.is_ok(), "{what}: it is {last:?}");
}

/// Asks as a page or a program does.
pub(crate) fn http() -> reqwest::Client {
    // A second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Gives the Engine a command.
pub(crate) fn docker(words: &[&str]) -> Said {
    let limit = DEADLINE.as_secs().to_string();
    Command::new("timeout").args([&limit, "docker"]).args(words).stdin(Stdio::null()).output().unwrap().into()
}
