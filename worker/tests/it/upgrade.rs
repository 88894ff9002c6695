//! Containers of workers that get another image, in a real Engine; a shell script stands in for the worker.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerInspectResponse, EndpointSettings, HostConfig,
    NetworkConnectRequest, NetworkCreateRequest, NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use futures_util::FutureExt;
use tempfile::TempDir;
use worker::config::ImageConfig;
use worker::upgrade::{Outcome, Step, Target, Upgrade, UpgradeError, upgrade};

use crate::support::TestEngine;
use crate::support::engine::IMAGE;
use crate::support::peer::until;

/// Ends when it is told to, as a worker does.
const WORKS: &str = "trap 'exit 0' TERM; echo \"works with $*\"; sleep 1000 & wait";
const FAILS: &str = "echo 'no good'; exit 3";
const LABEL: &str = "gridsocket.test.upgrade";

/// A name for containers, and images `1` and `2` that work, and `3` that does not.
struct Site {
    engine: TestEngine,
    name: String,
    folder: TempDir,
}

impl Site {
    async fn new() -> Option<Self> {
        let engine = TestEngine::find().await?;
        let name = format!("gs-upgrade-{}", uuid::Uuid::new_v4().simple());
        let site = Self { engine, name, folder: TempDir::new().unwrap() };
        for (tag, script) in [("1", WORKS), ("2", WORKS), ("3", FAILS)] {
            site.image(tag, script).await;
        }
        Some(site)
    }

    fn repository(&self) -> String {
        format!("{}/worker", self.name)
    }

    async fn image(&self, tag: &str, script: &str) {
        let docker = &self.engine.docker;
        let body = ContainerCreateBody { image: Some(IMAGE.to_owned()), ..Default::default() };
        let made = docker.create_container(None, body).await.unwrap();
        let options =
            CommitContainerOptionsBuilder::default().container(&made.id).repo(&self.repository()).tag(tag).build();
        let words = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
        let config = ContainerConfig {
            entrypoint: words(&["sh", "-c", script, "--"]),
            env: words(&[&format!("VERSION={tag}"), "PATH=/bin"]),
            labels: Some(HashMap::from([("by-image".to_owned(), tag.to_owned())])),
            ..ContainerConfig::default()
        };
        docker.commit_container(options, config).await.unwrap();
        docker.remove_container(&made.id, None).await.unwrap();
    }

    /// Starts the worker from image `1` with what `change` says.
    async fn start(&self, change: impl FnOnce(&mut ContainerCreateBody)) -> String {
        let mut body = ContainerCreateBody {
            image: Some(format!("{}:1", self.repository())),
            cmd: Some(vec!["run".to_owned(), "q".to_owned()]),
            env: Some(vec!["METAPAGE_IO_WORKER_CPUS=4".to_owned()]),
            labels: Some(HashMap::from([(LABEL.to_owned(), self.name.clone())])),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        change(&mut body);
        let options = CreateContainerOptionsBuilder::default().name(&self.name).build();
        let made = self.engine.docker.create_container(Some(options), body).await.unwrap();
        self.engine.docker.start_container(&made.id, None).await.unwrap();
        made.id
    }

    fn plan(&self, target: Target) -> Upgrade {
        Upgrade {
            docker_host: Some(self.engine.host.clone()),
            names: vec![self.name.clone()],
            target,
            patience: Duration::from_secs(60),
            steady: Duration::from_millis(700),
            images: ImageConfig::default(),
        }
    }

    async fn upgrade(&self, target: Target) -> Result<Vec<Outcome>, UpgradeError> {
        let mut outcomes = Vec::new();
        upgrade(&self.plan(target), |_, _| {}, |_, outcome| outcomes.push(outcome)).await.map(|()| outcomes)
    }

    /// The same by a process that is killed right after a step; whether it came that far.
    async fn upgrade_until(&self, tag: &str, last: Step) -> bool {
        let plan = self.plan(version(tag));
        let stop = |_: &str, step| {
            if step == last {
                std::panic::resume_unwind(Box::new("killed"))
            }
        };
        match AssertUnwindSafe(upgrade(&plan, stop, |_, _| {})).catch_unwind().await {
            Ok(ended) => {
                ended.unwrap();
                false
            }
            Err(_) => true,
        }
    }

    async fn inspect(&self) -> ContainerInspectResponse {
        self.engine.docker.inspect_container(&self.name, None).await.unwrap()
    }

    /// All that there is of it, by name, with the image and whether it runs.
    async fn all(&self) -> Vec<(String, String, bool)> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL}={}", self.name)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.engine.docker.list_containers(Some(options)).await.unwrap();
        let mut all = Vec::new();
        for container in found {
            let about = self.engine.docker.inspect_container(container.id.as_deref().unwrap(), None).await.unwrap();
            let version = about
                .config
                .unwrap()
                .env
                .unwrap()
                .into_iter()
                .find_map(|entry| Some(entry.strip_prefix("VERSION=")?.to_owned()));
            let running = about.state.unwrap().running.unwrap();
            all.push((about.name.unwrap().trim_start_matches('/').to_owned(), version.unwrap(), running));
        }
        all.sort();
        all
    }

    fn only(&self, version: &str) -> Vec<(String, String, bool)> {
        vec![(self.name.clone(), version.to_owned(), true)]
    }

    async fn clean(&self) {
        let docker = &self.engine.docker;
        let remove = || RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        for name in ["", "-upgrade", "-before-upgrade", "-job0", "-job1"] {
            let _ = docker.remove_container(&format!("{}{name}", self.name), Some(remove())).await;
        }
        for tag in ["1", "2", "3"] {
            let options = RemoveImageOptionsBuilder::default().force(true).build();
            let _ = docker.remove_image(&format!("{}:{tag}", self.repository()), Some(options), None).await;
        }
        for network in ["a", "b"] {
            let _ = docker.remove_network(&format!("{}-{network}", self.name)).await;
        }
    }
}

fn version(tag: &str) -> Target {
    Target::Version(tag.to_owned())
}

/// Runs `body`, and removes what it has made however it ends.
async fn at_site(body: impl AsyncFnOnce(&Site)) {
    let Some(site) = Site::new().await else { return };
    let ended = AssertUnwindSafe(body(&site)).catch_unwind().await;
    site.clean().await;
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

#[tokio::test]
async fn the_whole_configuration_goes_to_the_new_container_and_the_old_one_is_gone() {
    at_site(async |site| {
        let docker = &site.engine.docker;
        let [first, second] = ["a", "b"].map(|network| format!("{}-{network}", site.name));
        for name in [&first, &second] {
            let request = NetworkCreateRequest { name: name.clone(), ..NetworkCreateRequest::default() };
            docker.create_network(request).await.unwrap();
        }
        let old = site
            .start(|body| {
                let endpoint =
                    EndpointSettings { aliases: Some(vec!["here".to_owned()]), ..EndpointSettings::default() };
                body.networking_config =
                    Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(first.clone(), endpoint)])) });
                body.volumes = Some(vec!["/data".to_owned()]);
                body.stop_timeout = Some(7);
                body.host_config = Some(HostConfig {
                    network_mode: Some(first.clone()),
                    binds: Some(vec![format!("{}:/tmp/shared", site.folder.path().display())]),
                    memory: Some(64 << 20),
                    pids_limit: Some(50),
                    cap_drop: Some(vec!["NET_RAW".to_owned()]),
                    restart_policy: Some(RestartPolicy {
                        name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
                        maximum_retry_count: None,
                    }),
                    extra_hosts: Some(vec!["broker:10.0.0.1".to_owned()]),
                    ..HostConfig::default()
                });
            })
            .await;
        let request = NetworkConnectRequest { container: old.clone(), endpoint_config: None };
        docker.connect_network(&second, request).await.unwrap();
        let before = site.inspect().await;

        let outcomes = site.upgrade(version("2")).await.unwrap();
        assert_eq!(outcomes, [Outcome::Upgraded { image: format!("{}:2", site.repository()) }]);
        assert_eq!(site.all().await, site.only("2"));
        let after = site.inspect().await;
        assert_ne!(before.id, after.id);
        let (was, is) = (before.host_config.unwrap(), after.host_config.unwrap());
        let volume = after.mounts.as_ref().unwrap().iter().find(|mount| mount.destination.as_deref() == Some("/data"));
        let earlier =
            before.mounts.as_ref().unwrap().iter().find(|mount| mount.destination.as_deref() == Some("/data"));
        assert_eq!(volume.unwrap().name, earlier.unwrap().name, "what nobody named is the same volume");
        // That volume is written down now; all else is as it was.
        assert_eq!(HostConfig { binds: was.binds.clone(), ..is }, was);
        let (was, is) = (before.config.unwrap(), after.config.unwrap());
        assert_eq!((was.cmd, was.stop_timeout), (is.cmd, is.stop_timeout));
        let env = is.env.unwrap();
        assert!(
            env.contains(&"METAPAGE_IO_WORKER_CPUS=4".to_owned()) && env.contains(&"VERSION=2".to_owned()),
            "{env:?}"
        );
        let labels = is.labels.unwrap();
        assert_eq!((labels[LABEL].as_str(), labels["by-image"].as_str()), (site.name.as_str(), "2"));
        let networks = after.network_settings.unwrap().networks.unwrap();
        assert!(networks.contains_key(&second), "{networks:?}");
        assert!(networks[&first].aliases.as_ref().unwrap().contains(&"here".to_owned()), "{networks:?}");
    })
    .await;
}

#[tokio::test]
async fn the_old_container_comes_back_when_the_new_one_is_not_well() {
    at_site(async |site| {
        let old = site.start(|_| {}).await;
        let outcomes = site.upgrade(version("3")).await.unwrap();
        let [Outcome::Restored { why, log }] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert!(why.contains("code 3") && log.iter().any(|line| line.contains("no good")), "{outcomes:?}");
        assert_eq!(site.all().await, site.only("1"));
        assert_eq!(site.inspect().await.id, Some(old), "it is the very same");
        // And once more, to one that works.
        assert!(matches!(site.upgrade(version("2")).await.unwrap()[..], [Outcome::Upgraded { .. }]));
        assert_eq!(site.all().await, site.only("2"));
    })
    .await;
}

#[tokio::test]
async fn one_that_is_restarted_again_and_again_is_not_well() {
    at_site(async |site| {
        site.start(|body| {
            let always = RestartPolicy { name: Some(RestartPolicyNameEnum::ALWAYS), maximum_retry_count: None };
            body.host_config.as_mut().unwrap().restart_policy = Some(always);
        })
        .await;
        let outcomes = site.upgrade(version("3")).await.unwrap();
        assert!(matches!(outcomes[..], [Outcome::Restored { .. }]), "{outcomes:?}");
        assert_eq!(site.all().await, site.only("1"));
    })
    .await;
}

#[tokio::test]
async fn a_container_that_removes_itself_is_made_again_when_the_new_one_is_not_well() {
    at_site(async |site| {
        let goes = |body: &mut ContainerCreateBody| body.host_config.as_mut().unwrap().auto_remove = Some(true);
        site.start(goes).await;
        let outcomes = site.upgrade(version("3")).await.unwrap();
        assert!(matches!(outcomes[..], [Outcome::Restored { .. }]), "{outcomes:?}");
        assert_eq!(site.all().await, site.only("1"));
        let outcomes = site.upgrade(Target::Image(format!("{}:2", site.repository()))).await.unwrap();
        assert!(matches!(outcomes[..], [Outcome::Upgraded { .. }]), "{outcomes:?}");
        assert_eq!(site.all().await, site.only("2"));
    })
    .await;
}

#[tokio::test]
async fn a_second_try_finishes_what_a_killed_one_began_wherever_that_was() {
    finishes(false).await;
}

#[tokio::test]
async fn a_second_try_finishes_the_same_with_containers_that_remove_themselves() {
    finishes(true).await;
}

async fn finishes(removes_itself: bool) {
    at_site(async |site| {
        for step in [Step::Made, Step::Stopped, Step::SetAside, Step::Named, Step::Started, Step::Well] {
            site.start(|body| body.host_config.as_mut().unwrap().auto_remove = Some(removes_itself)).await;
            assert!(site.upgrade_until("2", step).await, "{step:?}");
            let outcomes = site.upgrade(version("2")).await.unwrap();
            assert!(matches!(outcomes[..], [Outcome::Upgraded { .. }]), "killed after {step:?}: {outcomes:?}");
            assert_eq!(site.all().await, site.only("2"), "killed after {step:?}");
            let current = site.upgrade(version("2")).await.unwrap();
            assert!(matches!(current[..], [Outcome::Current { .. }]), "{current:?}");
            site.remove().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_second_try_takes_back_what_a_killed_one_began_with_an_image_that_fails() {
    takes_back(false).await;
}

#[tokio::test]
async fn a_second_try_takes_back_the_same_with_containers_that_remove_themselves() {
    takes_back(true).await;
}

async fn takes_back(removes_itself: bool) {
    at_site(async |site| {
        for step in [Step::Made, Step::Stopped, Step::SetAside, Step::Named, Step::Started, Step::Ill] {
            site.start(|body| body.host_config.as_mut().unwrap().auto_remove = Some(removes_itself)).await;
            assert!(site.upgrade_until("3", step).await, "{step:?}");
            let outcomes = site.upgrade(version("3")).await.unwrap();
            assert!(matches!(outcomes[..], [Outcome::Restored { .. }]), "killed after {step:?}: {outcomes:?}");
            assert_eq!(site.all().await, site.only("1"), "killed after {step:?}");
            site.remove().await;
        }
    })
    .await;
}

impl Site {
    async fn remove(&self) {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let _ = self.engine.docker.remove_container(&self.name, Some(options)).await;
        until("it is gone", async || self.engine.docker.inspect_container(&self.name, None).await.is_err()).await;
    }
}

#[tokio::test]
async fn without_a_version_it_is_what_the_name_means_now() {
    at_site(async |site| {
        site.start(|_| {}).await;
        let current = site.upgrade(Target::Same).await.unwrap();
        assert_eq!(current, [Outcome::Current { image: format!("{}:1", site.repository()) }]);
        let options = TagImageOptionsBuilder::default().repo(&site.repository()).tag("1").build();
        site.engine.docker.tag_image(&format!("{}:2", site.repository()), Some(options)).await.unwrap();
        assert!(matches!(site.upgrade(Target::Same).await.unwrap()[..], [Outcome::Upgraded { .. }]));
        assert_eq!(site.all().await, site.only("2"));
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_had_changes_nothing_and_what_is_not_there_is_named() {
    at_site(async |site| {
        let old = site.start(|_| {}).await;
        let refused = site.upgrade(version("9")).await.unwrap_err();
        assert!(matches!(refused, UpgradeError::Image { .. }), "{refused}");
        assert!(refused.to_string().contains(":9"), "{refused}");
        assert_eq!(site.inspect().await.id, Some(old));
        assert_eq!(site.all().await, site.only("1"));
        let mut plan = site.plan(version("2"));
        plan.names = vec!["no-such-container".to_owned()];
        let refused = upgrade(&plan, |_, _| {}, |_, _| {}).await.unwrap_err();
        assert!(refused.to_string().contains("no-such-container"), "{refused}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_image_of_a_job_says_is_not_taken_for_an_upgrade_that_was_begun() {
    at_site(async |site| {
        let victim = site.start(|_| {}).await;
        // Containers have the labels of their images.
        let marks: [&[(&str, &str)]; 2] = [
            &[("container.mtfm.io/upgrade.of", &victim), ("container.mtfm.io/upgrade.name", &site.name)],
            &[("container.mtfm.io/upgrade.kept", &site.name)],
        ];
        for (number, marks) in marks.into_iter().enumerate() {
            let marks = marks.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let body = ContainerCreateBody {
                image: Some(format!("{}:1", site.repository())),
                labels: Some(marks.chain([(LABEL.to_owned(), site.name.clone())]).collect()),
                host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
                ..ContainerCreateBody::default()
            };
            let name = format!("{}-job{number}", site.name);
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let made = site.engine.docker.create_container(Some(options), body).await.unwrap();
            site.engine.docker.start_container(&made.id, None).await.unwrap();
        }
        let before = site.all().await;
        let outcomes = site.upgrade(version("1")).await.unwrap();
        assert!(matches!(outcomes[..], [Outcome::Current { .. }]), "{outcomes:?}");
        assert_eq!((site.inspect().await.id, site.all().await), (Some(victim.clone()), before));
    })
    .await;
}
