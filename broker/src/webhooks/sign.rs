//! Signatures, so that a receiver knows who called: as Standard Webhooks has it, which libraries in many languages check.
//!
//! The secret is derived from the queue's name, so whoever knows the name can compute it, and the broker keeps none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::id::{QueueName, UnixMillis};
use ring::hmac;

/// A queue's secret.
pub struct Secret(Vec<u8>);

impl Secret {
    /// The secret of the queue of that name.
    #[must_use]
    pub fn of(queue: &QueueName) -> Self {
        Self(blake3::derive_key("gridsocket 2026 webhook secret", queue.as_str().as_bytes()).into())
    }

    /// The secret as libraries for Standard Webhooks take it.
    #[must_use]
    pub fn text(&self) -> String {
        format!("whsec_{}", STANDARD.encode(&self.0))
    }

    /// The value of the header `webhook-signature` for a body that is sent under an id at a time.
    pub(super) fn sign(&self, id: &str, at: UnixMillis, body: &[u8]) -> String {
        let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        mac.update(format!("{id}.{}.", at.0 / 1000).as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.sign()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_signatures_are_what_they_have_always_been() {
        let secret = Secret::of(&"my-queue".parse().unwrap());
        assert_eq!(secret.text(), "whsec_mOVrWSMG5QKwLwRhSUMbzcKXhpNuP55Vnbwf4Z27VIo=");
        let signed = secret.sign("msg", UnixMillis(1_730_000_000_999), b"{\"k\":1}");
        assert_eq!(signed, "v1,SA8Va6Znn5QYy2OnL2lYgDwqfMSlM21AvIw54NSTPw0=");
    }

    #[test]
    fn a_signature_is_the_one_of_the_specifications_example() {
        let secret = Secret(STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap());
        let at = UnixMillis(1_614_265_330_000);
        let signed = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, b"{\"test\": 2432232314}");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
