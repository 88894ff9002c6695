//! TLS for `wss:` and `https:`: rustls with ring, trusting the web's usual authorities.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// Makes ring the process's TLS provider. Call it once at start, before [`crate::run`]; calling it again does nothing.
pub fn install_tls() {
    // The only failure is that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What both the socket and the file transfers speak TLS with.
///
/// # Errors
///
/// When ring offers no usable protocol version, which a build of this workspace always does.
pub(crate) fn client_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
