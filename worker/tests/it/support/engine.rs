//! The Engine that the tests run against, if there is one.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{CreateImageOptionsBuilder, ListContainersOptionsBuilder, RemoveVolumeOptions};
use futures_util::StreamExt;
use protocol::id::{QueueKey, QueueName};

use super::peer::until;

/// A root made of busybox.
pub(crate) const IMAGE: &str = "gridsocket/busybox:local";
const BUSYBOX: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/sbin/busybox"];
const APPLETS: [&str; 12] = ["sh", "cat", "sleep", "seq", "yes", "head", "wc", "echo", "ln", "mkfifo", "env", "mkdir"];

pub(crate) struct TestEngine {
    pub(crate) host: String,
    pub(crate) docker: Docker,
}

impl TestEngine {
    /// The Engine at `DOCKER_HOST` or the usual socket. Without one the test is skipped, unless
    /// `GRIDSOCKET_TEST_ENGINE=required`.
    pub(crate) async fn find() -> Option<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| worker::config::DOCKER_HOST_DEFAULT.to_owned());
        match connect(&host).await {
            Ok(docker) => {
                ensure_image(&docker).await;
                Some(Self { host, docker })
            }
            Err(error) if std::env::var("GRIDSOCKET_TEST_ENGINE").is_ok_and(|value| value == "required") => {
                panic!("a Docker Engine is required, but none answers at {host}: {error}")
            }
            Err(error) => {
                println!("skipped: no Docker Engine ({error})");
                None
            }
        }
    }

    /// The Engine at `host`, if it answers.
    pub(crate) async fn at(host: &str) -> Option<Self> {
        let docker = connect(host).await.ok()?;
        ensure_image(&docker).await;
        Some(Self { host: host.to_owned(), docker })
    }

    /// The containers of a queue, in any state.
    pub(crate) async fn containers(&self, queue: &QueueName) -> Vec<ContainerSummary> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("container.mtfm.io/queue={queue}")])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await.unwrap()
    }

    /// Waits until the queue has so many containers.
    pub(crate) async fn until_containers(&self, queue: &QueueName, count: usize) {
        until("the number of containers is right", async || self.containers(queue).await.len() == count).await;
    }

    /// Waits until the queue has no container, and removes its volume.
    pub(crate) async fn until_clean(&self, queue: &QueueName) {
        self.until_containers(queue, 0).await;
        for cache in self.caches(queue).await {
            match self.docker.remove_volume(&cache, None::<RemoveVolumeOptions>).await {
                // The worker was faster.
                Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The volumes that the queue's jobs share or have shared.
    pub(crate) async fn caches(&self, queue: &QueueName) -> Vec<String> {
        let filters = HashMap::from([("name".to_owned(), vec![cache(queue)])]);
        let options = bollard::query_parameters::ListVolumesOptionsBuilder::default().filters(&filters).build();
        let volumes = self.docker.list_volumes(Some(options)).await.unwrap().volumes.unwrap_or_default();
        volumes.into_iter().map(|volume| volume.name).collect()
    }

    /// A tar with the test image's busybox in its root.
    pub(crate) async fn busybox_layer(&self) -> Vec<u8> {
        let body = bollard::models::ContainerCreateBody { image: Some(IMAGE.to_owned()), ..Default::default() };
        let made = self.docker.create_container(None, body).await.unwrap();
        let options =
            bollard::query_parameters::DownloadFromContainerOptionsBuilder::default().path("/bin/busybox").build();
        let mut layer = Vec::new();
        {
            let mut chunks = std::pin::pin!(self.docker.download_from_container(&made.id, Some(options)));
            while let Some(chunk) = chunks.next().await {
                layer.extend_from_slice(&chunk.unwrap());
            }
        }
        self.docker.remove_container(&made.id, None).await.unwrap();
        layer
    }

    /// Makes an empty file in the volume that the queue's jobs share.
    pub(crate) async fn touch_in_cache(&self, queue: &QueueName, name: &str) {
        let body = bollard::models::ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            cmd: Some(vec!["sh".to_owned(), "-c".to_owned(), format!(": > /cache/{name}")]),
            host_config: Some(bollard::models::HostConfig {
                network_mode: Some("none".to_owned()),
                binds: Some(vec![format!("{}:/cache", cache(queue))]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let made = self.docker.create_container(None, body).await.unwrap();
        self.docker.start_container(&made.id, None).await.unwrap();
        until("the file is made", async || {
            let state = self.docker.inspect_container(&made.id, None).await.unwrap().state.unwrap();
            state.running == Some(false)
        })
        .await;
        self.docker.remove_container(&made.id, None).await.unwrap();
    }

    /// The queue's only container, once its status is `status`.
    pub(crate) async fn container_when(&self, queue: &QueueName, status: &str) -> ContainerInspectResponse {
        loop_until(async || {
            let id = self.containers(queue).await.into_iter().next()?.id?;
            let found = self.docker.inspect_container(&id, None).await.ok()?;
            let is = found.state.as_ref()?.status.as_ref()?.to_string();
            (is == status).then_some(found)
        })
        .await
    }
}

/// The volume that the queue's jobs share.
fn cache(queue: &QueueName) -> String {
    format!("metaframe-container-worker-cache-{}", QueueKey::of(queue))
}

async fn loop_until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut found = None;
    until("the container is in the right state", async || {
        found = look().await;
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn connect(host: &str) -> Result<Docker, bollard::errors::Error> {
    let docker = Docker::connect_with_host(host)?.with_timeout(Duration::from_secs(30)).negotiate_version().await?;
    docker.ping().await?;
    Ok(docker)
}

/// Makes the image from this machine's static busybox when it is missing.
async fn ensure_image(docker: &Docker) {
    if docker.inspect_image(IMAGE).await.is_ok() {
        return;
    }
    let busybox = BUSYBOX.iter().find_map(|path| std::fs::read(path).ok());
    let busybox = busybox.expect("the image gridsocket/busybox:local, or a static busybox to make it from");
    let mut root = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(busybox.len() as u64);
    root.append_data(&mut header, "bin/busybox", busybox.as_slice()).unwrap();
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        root.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    let (name, tag) = IMAGE.split_once(':').unwrap();
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(name).tag(tag).build();
    let body = bollard::body_full(root.into_inner().unwrap().into());
    let mut events = docker.create_image(Some(options), Some(body), None);
    while let Some(event) = events.next().await {
        event.unwrap();
    }
}
