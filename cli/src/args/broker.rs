//! A broker's options that `gridsocket serve` and `gridsocket local` share.

use broker::config::{AddressRange, AddressRangeError, Config, Durability};

use super::setting::{Env, UsageError, base_url, setting};
use super::webhooks;

/// Options of a broker, wherever it is.
#[derive(Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Where blobs are kept: a folder, or `s3://BUCKET[/PREFIX]?endpoint=…&region=…` with credentials in AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY [env: GRIDSOCKET_BLOBS, else AWS_S3_BUCKET] [default: inside the data folder]
    #[arg(long, value_name = "URL")]
    blobs: Option<String>,
    /// When a change counts as stored: `fsync` (on disk before anyone is told) or `interval` (faster; a power cut may lose
    /// the last moments) [env: GRIDSOCKET_DURABILITY] [default: fsync]
    #[arg(long, value_name = "WHEN")]
    durability: Option<String>,
    /// How others reach this broker, where it cannot be told from what they ask [env: GRIDSOCKET_PUBLIC_URL]
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// A proxy in front of this broker, or a range of them, such as `10.0.0.0/8`: what it says about its clients' addresses is
    /// believed, so that limits are theirs; may be repeated [env: GRIDSOCKET_TRUSTED_PROXY, apart by commas]
    #[arg(long = "trusted-proxy", value_name = "ADDR[/BITS]")]
    trusted_proxies: Vec<String>,
    #[command(flatten)]
    webhooks: webhooks::Args,
    /// Set a limit, such as `live-jobs=200000` or `blob=1TiB`; may be repeated; one that does not exist lists them all
    /// [env: GRIDSOCKET_LIMITS, apart by commas]
    #[arg(long = "limit", value_name = "NAME=VALUE")]
    limits: Vec<String>,
}

impl Args {
    /// Writes the options into `config`, by flag > variable > default.
    pub(super) fn apply(&self, env: Env<'_>, config: &mut Config) -> Result<(), UsageError> {
        if let Some(blobs) = super::blobs::find(self.blobs.as_deref(), env)? {
            config.blobs = blobs;
        }
        let durability = setting("--durability", self.durability.as_deref(), "GRIDSOCKET_DURABILITY");
        config.durability = durability.or(env, Durability::Fsync, when)?;
        let public_url = setting("--public-url", self.public_url.as_deref(), "GRIDSOCKET_PUBLIC_URL");
        config.public_url = public_url.find(env, base_url)?;
        let proxies = joined(&self.trusted_proxies);
        let proxies = setting("--trusted-proxy", proxies.as_deref(), "GRIDSOCKET_TRUSTED_PROXY");
        config.trusted_proxies = proxies.find(env, address_ranges)?.unwrap_or_default();
        config.webhooks = self.webhooks.reach(env)?;
        let limits = joined(&self.limits);
        let mut set = config.limits.clone();
        setting("--limit", limits.as_deref(), "GRIDSOCKET_LIMITS").find(env, |text| set.set(text))?;
        config.limits = set;
        Ok(())
    }
}

/// What a flag that may be repeated said, as its variable says it.
pub(super) fn joined(given: &[String]) -> Option<String> {
    (!given.is_empty()).then(|| given.join(","))
}

pub(super) fn address_ranges(text: &str) -> Result<Vec<AddressRange>, AddressRangeError> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse).collect()
}

fn when(text: &str) -> Result<Durability, &'static str> {
    match text {
        "fsync" => Ok(Durability::Fsync),
        "interval" => Ok(Durability::Interval),
        _ => Err("write fsync or interval"),
    }
}
