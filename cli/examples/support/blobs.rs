//! Whether every upload that was acknowledged is there, byte for byte.

use broker::blobs::{BlobKey, Blobs};
use broker::config::Config;
use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};

use crate::told::{Fact, Told};

/// Everything that is wrong with the blobs of a broker's data folder.
pub(crate) async fn check(config: &Config, told: &[Told]) -> anyhow::Result<Vec<String>> {
    let blobs = Blobs::open(&config.blobs, config.limits.blob_bytes_max).await?;
    let mut wrong = Vec::new();
    for one in told {
        let Fact::Stored { key, bytes } = &one.fact else { continue };
        if let Err(error) = check_one(&blobs, key, *bytes).await {
            wrong.push(format!("blob {key} of {bytes} bytes: {error:#}"));
        }
    }
    Ok(wrong)
}

async fn check_one(blobs: &Blobs, key: &str, bytes: u64) -> anyhow::Result<()> {
    let Some(blob) = blobs.get(&key.parse::<BlobKey>()?, None).await? else { anyhow::bail!("it is not there") };
    anyhow::ensure!(blob.size == bytes, "it has {} bytes", blob.size);
    let mut parts = blob.bytes;
    let mut hasher = Sha256::new();
    while let Some(part) = parts.try_next().await? {
        hasher.update(&part);
    }
    let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    anyhow::ensure!(digest == key, "it has other bytes");
    Ok(())
}
