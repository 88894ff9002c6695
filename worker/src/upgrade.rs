//! Workers in containers get a newer image: the whole configuration is kept, and the old container comes back if the new one does
//! not become well.
//!
//! `carry` (pure) makes the new container's configuration of the old one's, `names` (pure) says who is a worker and what things
//! are called meanwhile, `swap` does the exchange. **Invariant:** until the new one is well, the old container is there, or one just
//! like it (where it removes itself when it is stopped); at each moment labels and names say how far it came, so that whoever comes after a killed process finishes or
//! takes back what that began.

mod carry;
mod names;
mod swap;

use std::time::Duration;

use bollard::errors::Error;
use bollard::models::ContainerInspectResponse;

use crate::config::{DOCKER_HOST_DEFAULT, ImageConfig};
use crate::container::{Engine, is_not_found};
use crate::images;
use swap::Swap;

/// How long a new container has to become well, unless told otherwise: an image's own check may take that to say so.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long one without a check of its own has to run to count as well: what cannot start ends within a second or two.
pub const STEADY: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// Where the engine listens; `None`: its usual place.
    pub docker_host: Option<String>,
    /// Which containers, by name; all that run a worker when there are none.
    pub names: Vec<String>,
    /// What they are to become.
    pub target: Target,
    /// How long a new container has to become well.
    pub patience: Duration,
    /// How long one without a check of its own has to run.
    pub steady: Duration,
    /// Logins to registries.
    pub images: ImageConfig,
}

/// Which image is next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// What the name means today that the container was started by.
    Same,
    /// Another tag of the same name. `-standalone` behind the old tag is kept.
    Version(String),
    /// This one.
    Image(String),
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An exchange that did not come to its end was found.
    Found,
    /// The image is being fetched.
    Fetching,
    /// The new container is made, and not started.
    Made,
    /// The old one is stopped.
    Stopped,
    /// And has another name.
    SetAside,
    /// The new one has its name.
    Named,
    /// And runs; whether it is well is yet to be seen.
    Started,
    /// It is well.
    Well,
    /// It is not; the old one is to come back.
    Ill,
}

/// What became of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has the new image.
    Upgraded {
        /// The image's name.
        image: String,
    },
    /// It had it already.
    Current {
        /// The image's name.
        image: String,
    },
    /// It is as it was.
    Restored {
        /// Why.
        why: String,
        /// What the new one printed last.
        log: Vec<String>,
    },
}

/// What cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// No engine.
    #[error("no container engine answers at {address}: {source}; `gridsocket doctor` says more")]
    EngineDown {
        /// Where it was looked for.
        address: String,
        /// What was said.
        source: Error,
    },
    /// The engine refused something. What was begun is taken up by the next try.
    #[error(
        "the container engine refused to {what}: {source}; the same command once more finishes, or takes back, what was begun"
    )]
    Engine {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: Error,
    },
    /// There is no such worker.
    #[error("no container {name:?} runs here; `docker ps` lists those that do")]
    NoSuch {
        /// What was asked for.
        name: String,
    },
    /// Nothing to do it to.
    #[error("no worker runs in a container here; name the container, if it is one that is not known as such")]
    None,
    /// This very process runs in it.
    #[error("{name} is the container that this command runs in: run it on the machine, or in another container")]
    Own {
        /// Which.
        name: String,
    },
    /// The image that is to be next cannot be told or had. Nothing was changed.
    #[error("{name} stays as it is: {why}")]
    Image {
        /// Which container.
        name: String,
        /// What is wrong.
        why: String,
    },
}

fn refused(what: &'static str) -> impl FnOnce(Error) -> UpgradeError {
    move |source| UpgradeError::Engine { what, source }
}

/// Upgrades one after the other; tells each step as it is done. What an earlier process left half done is finished or taken back
/// first.
///
/// # Errors
///
/// [`UpgradeError`]; those before are done, and told.
pub async fn upgrade(
    plan: &Upgrade,
    mut tell: impl FnMut(&str, Step) + Send,
    mut done: impl FnMut(&str, Outcome) + Send,
) -> Result<(), UpgradeError> {
    let address = plan.docker_host.as_deref().unwrap_or(DOCKER_HOST_DEFAULT);
    let engine = Engine::try_connect(address)
        .await
        .map_err(|source| UpgradeError::EngineDown { address: address.to_owned(), source })?;
    let mut swap = Swap { engine: &engine, patience: plan.patience, steady: plan.steady, tell: &mut tell };
    let recovered = swap.recover(&plan.names).await?;
    let workers = names::workers(&engine, &plan.names).await.map_err(refused("list containers"))?;
    let is_finished = |name: &String| {
        recovered.iter().any(|(other, outcome)| other == name && matches!(outcome, Outcome::Upgraded { .. }))
    };
    let finished: Vec<String> = workers.iter().filter(|name| is_finished(name)).cloned().collect();
    let mut is_any = !recovered.is_empty();
    for (name, outcome) in recovered {
        // What came back is tried once more below, and that is what counts.
        if matches!(outcome, Outcome::Upgraded { .. }) || !workers.contains(&name) {
            done(&name, outcome);
        }
    }
    for name in workers {
        let old = match engine.inspect(&name).await {
            Ok(old) if old.state.as_ref().and_then(|state| state.running) == Some(true) => old,
            Err(error) if !is_not_found(&error) => return Err(refused("tell of a container")(error)),
            Ok(_) | Err(_) => return Err(UpgradeError::NoSuch { name }),
        };
        is_any = true;
        let name = names::plain(&old).to_owned();
        if names::is_own(&old) {
            return Err(UpgradeError::Own { name });
        }
        let outcome = one(plan, &engine, &mut swap, &name, &old).await?;
        // What was finished a moment ago is told once.
        if !(finished.contains(&name) && matches!(outcome, Outcome::Current { .. })) {
            done(&name, outcome);
        }
    }
    if is_any { Ok(()) } else { Err(UpgradeError::None) }
}

async fn one(
    plan: &Upgrade,
    engine: &Engine,
    swap: &mut Swap<'_>,
    name: &str,
    old: &ContainerInspectResponse,
) -> Result<Outcome, UpgradeError> {
    let stays = |why: String| UpgradeError::Image { name: name.to_owned(), why };
    let image = names::target(&names::image_of(old), &plan.target).map_err(stays)?;
    (swap.tell)(name, Step::Fetching);
    let fetched = images::fetch(engine.docker(), &plan.images, &image).await;
    let found = match (engine.docker().inspect_image(&image).await, fetched) {
        (Ok(found), _) => found,
        (Err(error), Err(why)) if is_not_found(&error) => {
            return Err(stays(format!("there is no image {image}: {why}")));
        }
        (Err(error), _) => return Err(refused("tell of the image")(error)),
    };
    if found.id.is_some() && found.id == old.image {
        return Ok(Outcome::Current { image });
    }
    let before = match &old.image {
        Some(id) => engine.docker().inspect_image(id).await.ok().and_then(|image| image.config),
        None => None,
    };
    let new = carry::carry(old, before.as_ref(), &image);
    swap.exchange(name, old, new, &image).await
}
