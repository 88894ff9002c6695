//! The registry of one's own in which built images are kept, if there is one: a fleet builds an image once. What goes wrong with it
//! is a line in the job's build log, and the image is built here.

use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use protocol::native::LogStep;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::key;
use super::log::BuildLog;
use crate::config::BuildRegistry;
use crate::images::{Images, NotFetched, words};

/// The longest that fetching or sending one image may take: a gigabyte in that time is 14 Mbit/s. Beyond it building is faster.
const TRANSFER: Duration = Duration::from_secs(10 * 60);
/// As long as a tag may be.
const TAG_BYTES_MAX: usize = 128;
/// What separates the parts of a platform in a tag, where a slash cannot be.
const PLATFORM_SEPARATOR: &str = "-";

/// Where one image is kept.
pub(super) struct Kept {
    /// Its name there.
    there: String,
    platform: Option<String>,
}

impl Kept {
    /// The place of the image `name` for a platform; the engine's own when `None`. Images for several have the same name on
    /// this machine, and must not be taken for each other in a fleet.
    pub(super) async fn of(
        registry: &BuildRegistry,
        docker: &Docker,
        name: &str,
        platform: Option<&str>,
    ) -> Result<Self, String> {
        let written = match platform {
            Some(platform) => platform.to_owned(),
            None => {
                let engine = docker.version().await.map_err(|error| words(&error))?;
                format!("{}/{}", engine.os.unwrap_or_default(), engine.arch.unwrap_or_default())
            }
        };
        Ok(Self { there: there(registry, name, &written)?, platform: platform.map(str::to_owned) })
    }

    /// Fetches it; tells whether it is here now.
    pub(super) async fn fetch(&self, images: &Arc<Images>, name: &str, log: &BuildLog) -> bool {
        log.line(LogStep::Pull, &format!("looking for it as {}", self.there), false);
        let tell = |line: String| log.line(LogStep::Pull, &line, false);
        let fetched = images.fetch_built(&self.there, name, self.platform.as_deref(), tell);
        let why = match timeout(TRANSFER, fetched).await {
            Ok(Ok(())) => {
                log.line(LogStep::Pull, &format!("fetched {}, which was built before", self.there), false);
                return true;
            }
            Ok(Err(NotFetched::NotThere)) => {
                log.line(LogStep::Pull, "it is not there yet", false);
                return false;
            }
            Ok(Err(NotFetched::Failed(why))) => why,
            Err(_) => too_slow(),
        };
        log.line(LogStep::Pull, &format!("cannot fetch {}, it is built here: {why}", self.there), true);
        false
    }

    /// Sends it there. That goes on, in its `room`, also when nobody waits for it any more: the next to want the image may be
    /// elsewhere.
    pub(super) async fn send(self, images: Arc<Images>, name: &str, log: &BuildLog, room: OwnedSemaphorePermit) {
        log.line(LogStep::Build, &format!("sending it to {}", self.there), false);
        let (name, there) = (name.to_owned(), self.there.clone());
        let sending = tokio::spawn(async move {
            let _room = room;
            timeout(TRANSFER, images.send_built(&name, &there)).await
        });
        let why = match sending.await {
            Ok(Ok(Ok(()))) => return log.line(LogStep::Build, "sent", false),
            Ok(Ok(Err(why))) => why,
            Ok(Err(_)) => too_slow(),
            Err(_) => "the worker failed at it; its log says where".to_owned(),
        };
        log.line(LogStep::Build, &format!("warning: cannot send it to {}: {why}", self.there), true);
    }
}

fn too_slow() -> String {
    format!("it took longer than {} s", TRANSFER.as_secs())
}

/// `registry.example/builds/<hash>:linux-amd64`.
fn there(registry: &BuildRegistry, name: &str, platform: &str) -> Result<String, String> {
    let hash = key::hash_of(name).ok_or_else(|| format!("{name} is not the name of a built image"))?;
    let tag = platform.to_ascii_lowercase().replace('/', PLATFORM_SEPARATOR);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if tag.is_empty()
        || tag.len() > TAG_BYTES_MAX
        || !tag.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !tag.chars().all(is_plain)
    {
        return Err(format!("{:?} is no platform", crate::brief::brief(platform)));
    }
    Ok(format!("{registry}/{hash}:{tag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_one_place_for_each_platform() {
        let registry: BuildRegistry = "registry.example:5000/team/builds".parse().unwrap();
        let name = "ttl.sh/b819c6555f37cbeb02b62361fc66ff9e:1d";
        let at = |platform| there(&registry, name, platform);
        assert_eq!(
            at("linux/amd64").unwrap(),
            "registry.example:5000/team/builds/b819c6555f37cbeb02b62361fc66ff9e:linux-amd64"
        );
        assert!(at("linux/arm/v7").unwrap().ends_with(":linux-arm-v7"));
        for bad in ["", "/", "linux amd64", "a:b", "a@b", "../x", &"x".repeat(200)] {
            assert!(at(bad).is_err(), "{bad:?}");
        }
        assert!(there(&registry, "busybox", "linux/amd64").is_err());
    }
}
