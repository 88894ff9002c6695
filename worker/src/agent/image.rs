//! Where a run's image comes from: a name, or a description that is built.

use protocol::definition::{Build, Definition};

use crate::builds::image_name;
use crate::clock::unix_now;
use crate::context::Context;
use crate::images::InUse;
use crate::logs::RunLog;
use crate::observe::Phase;
use crate::outcome::Ending;

/// The image that a definition asks for.
pub(super) struct Wanted<'a> {
    name: String,
    /// A description wins over a name.
    build: Option<&'a Build>,
}

impl<'a> Wanted<'a> {
    pub(super) fn of(definition: &'a Definition) -> Result<Self, &'static str> {
        if let Some(build) = &definition.build {
            return Ok(Self { name: image_name(build), build: Some(build) });
        }
        match definition.image.as_deref().map(str::trim) {
            Some(image) if !image.is_empty() => Ok(Self { name: image.to_owned(), build: None }),
            Some(_) | None => Err("the job names no image: say which one in `image`, or how to build it in `build`"),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_built(&self) -> bool {
        self.build.is_some()
    }

    /// Sees to it that the image is there. It stays as long as what is returned lives.
    pub(super) async fn ensure(&self, context: &Context, log: &RunLog) -> Result<InUse, Box<Ending>> {
        context.show(log.run(), if self.is_built() { Phase::Building } else { Phase::Pulling });
        let ensured = match self.build {
            Some(build) => {
                let built = context.builds.ensure(build, &self.name, log).await;
                built.map_err(|not_built| Box::new(Ending::not_built(not_built.logs)))
            }
            None => {
                let there = context.images.ensure(&self.name, Some(log)).await;
                there.map_err(|error| Box::new(Ending::no_image(&error.to_string(), unix_now())))
            }
        };
        context.show(log.run(), Phase::Inputs);
        ensured
    }

    /// It is not there although it was: see to it again.
    pub(super) async fn ensure_again(&self, context: &Context, log: &RunLog) -> Result<InUse, Box<Ending>> {
        context.images.doubt(&self.name);
        self.ensure(context, log).await
    }
}
