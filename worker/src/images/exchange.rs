//! Built images and a registry of one's own: sent there when they are built, and fetched instead of built. There they have a name
//! of their own, which an image on this machine has only meanwhile.

use std::sync::Arc;

use bollard::errors::Error;
use bollard::query_parameters::{PushImageOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder};
use futures_util::StreamExt;
use tracing::debug;

use super::reference::Reference;
use super::{Images, Look, look, pull, words};
use crate::config::PullPolicy;
use crate::container::is_not_found;

/// What engines say when a registry answers that it does not have an image.
const NOT_THERE: [&str; 3] = ["manifest unknown", "not found", "name unknown"];

/// Why an image was not fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotFetched {
    /// The registry does not have it.
    NotThere,
    /// Something is wrong.
    Failed(String),
}

impl Images {
    /// Fetches what a worker like this one sent to a registry as `from`, and gives it the name `name`, as if it had been built
    /// here.
    pub(crate) async fn fetch_built(
        self: &Arc<Self>,
        from: &str,
        name: &str,
        platform: Option<&str>,
        tell: impl FnMut(String),
    ) -> Result<(), NotFetched> {
        let reference = Reference::parse(from).ok_or_else(|| NotFetched::Failed(format!("{from} is no name")))?;
        if self.config.pull == PullPolicy::Never {
            return Err(NotFetched::NotThere);
        }
        let failed = |error: Error| NotFetched::Failed(words(&error));
        let was_there = matches!(look(&self.docker, from).await.map_err(failed)?, Look::There(_));
        let login = self.logins.find(reference.registry()).await;
        pull::pull(&self.docker, reference, platform, login, tell).await.map_err(|why| {
            let lower = why.to_lowercase();
            if NOT_THERE.iter().any(|words| lower.contains(words)) {
                NotFetched::NotThere
            } else {
                NotFetched::Failed(why)
            }
        })?;
        let named = self.name(from, name).await;
        if !was_there {
            self.unname(from).await;
        }
        named.map_err(failed)?;
        self.built(name).await;
        match self.is_built(name).await.map_err(failed)? {
            true => Ok(()),
            false => Err(NotFetched::Failed("the engine does not have what it fetched".to_owned())),
        }
    }

    /// Sends the image `name` to a registry as `to`.
    pub(crate) async fn send_built(&self, name: &str, to: &str) -> Result<(), String> {
        let reference = Reference::parse(to).ok_or_else(|| format!("{to} is no name"))?;
        let was_there = matches!(look(&self.docker, to).await.map_err(|error| words(&error))?, Look::There(_));
        self.name(name, to).await.map_err(|error| words(&error))?;
        let login = self.logins.find(reference.registry()).await;
        let options = PushImageOptionsBuilder::default().tag(reference.version()).build();
        let mut sent = Ok(());
        {
            let mut events = std::pin::pin!(self.docker.push_image(reference.name, Some(options), login));
            while let Some(event) = events.next().await {
                let said = match event {
                    Ok(event) => event.error_detail.and_then(|detail| detail.message),
                    Err(error) => Some(words(&error)),
                };
                if let Some(said) = said {
                    sent = Err(said);
                    break;
                }
            }
        }
        if !was_there {
            self.unname(to).await;
        }
        sent
    }

    async fn name(&self, from: &str, to: &str) -> Result<(), Error> {
        let Some(reference) = Reference::parse(to) else { return Ok(()) };
        let options = TagImageOptionsBuilder::default().repo(reference.name).tag(reference.version()).build();
        self.docker.tag_image(from, Some(options)).await
    }

    /// Takes a name away from an image that has another.
    async fn unname(&self, name: &str) {
        let options = RemoveImageOptionsBuilder::default().force(false).noprune(true).build();
        match self.docker.remove_image(name, Some(options), None).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {}
            Err(error) => debug!("the image {name} keeps that name: {error}"),
        }
    }
}
