//! Which addresses webhooks may call: options of whatever serves. And `gridsocket webhook-secret`.

use broker::webhooks::Reach;
use protocol::id::{IdError, QueueName};

use super::broker::address_ranges;
use super::setting::{Env, UsageError, setting, truth};

/// Options of a broker's webhooks.
#[derive(Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Let webhooks call this machine and its networks, too; only where everyone who may submit jobs may reach them anyway
    /// [env: GRIDSOCKET_ALLOW_PRIVATE_WEBHOOKS] [default: public addresses only]
    #[arg(long)]
    allow_private_webhooks: bool,
    /// An address or a range of this machine's networks that webhooks may call; may be repeated
    /// [env: GRIDSOCKET_ALLOW_WEBHOOKS_TO, apart by commas]
    #[arg(long = "allow-webhooks-to", value_name = "ADDR[/BITS]")]
    allow_webhooks_to: Vec<String>,
}

impl Args {
    /// Applies flag > variable > default.
    pub(super) fn reach(&self, env: Env<'_>) -> Result<Reach, UsageError> {
        let given = self.allow_private_webhooks.then_some("true");
        let allows_private =
            setting("--allow-private-webhooks", given, "GRIDSOCKET_ALLOW_PRIVATE_WEBHOOKS").or(env, false, truth)?;
        let ranges = (!self.allow_webhooks_to.is_empty()).then(|| self.allow_webhooks_to.join(","));
        let exceptions = setting("--allow-webhooks-to", ranges.as_deref(), "GRIDSOCKET_ALLOW_WEBHOOKS_TO")
            .find(env, address_ranges)?
            .unwrap_or_default();
        Ok(Reach { allows_private, exceptions, ..Reach::default() })
    }
}

/// Options of `gridsocket webhook-secret`.
#[derive(Debug, clap::Args)]
pub(crate) struct Secret {
    /// The queue
    pub(crate) queue: String,
}

impl Secret {
    /// The queue's name.
    pub(crate) fn queue(&self) -> Result<QueueName, UsageError> {
        self.queue.parse().map_err(|error: IdError| UsageError::new("QUEUE", error.to_string()))
    }
}
