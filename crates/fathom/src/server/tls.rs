//! Connections that nobody else can read: rustls, where the program was built with it.

use std::path::Path;

use crate::Error;

#[cfg(feature = "tls")]
pub use with::Tls;
#[cfg(not(feature = "tls"))]
pub use without::Tls;

fn wrong(path: &Path, problem: impl ToString) -> Error {
    Error::Tls { path: path.to_owned(), problem: problem.to_string() }
}

#[cfg(feature = "tls")]
mod with {
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, PoisonError, RwLock};

    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::server::TlsStream;

    use super::wrong;
    use crate::Error;

    /// A certificate and its key, from files.
    pub struct Tls {
        certificate: PathBuf,
        key: PathBuf,
        config: RwLock<Arc<ServerConfig>>,
    }

    impl Tls {
        /// Reads PEM files: a certificate with those that vouch for it, and its private key.
        ///
        /// # Errors
        /// [`Error::Tls`], with the file.
        pub fn read(certificate: &Path, key: &Path) -> Result<Tls, Error> {
            let config = RwLock::new(config(certificate, key)?);
            Ok(Tls { certificate: certificate.to_owned(), key: key.to_owned(), config })
        }

        /// Reads them again, for connections to come.
        ///
        /// # Errors
        /// As [`Tls::read`]; the certificate stays as it was.
        pub(in crate::server) fn reload(&self) -> Result<(), Error> {
            let config = config(&self.certificate, &self.key)?;
            *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
            Ok(())
        }

        pub(in crate::server) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
            let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
            TlsAcceptor::from(config).accept(stream).await
        }
    }

    fn config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
        let chain = CertificateDer::pem_file_iter(certificate).map_err(|e| wrong(certificate, e))?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(certificate, e))?;
        if chain.is_empty() {
            return Err(wrong(certificate, "there is no certificate in it"));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(certificate, e))?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|e| wrong(certificate, e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[cfg(not(feature = "tls"))]
mod without {
    use std::path::Path;

    use tokio::net::TcpStream;

    use super::wrong;
    use crate::Error;

    /// None: this program was built without TLS.
    pub enum Tls {}

    impl Tls {
        /// Says so.
        ///
        /// # Errors
        /// [`Error::Tls`], always.
        pub fn read(certificate: &Path, _key: &Path) -> Result<Tls, Error> {
            Err(wrong(certificate, "this program was built without TLS; build it with --features tls"))
        }

        pub(in crate::server) fn reload(&self) -> Result<(), Error> {
            match *self {}
        }

        pub(in crate::server) async fn accept(&self, _stream: TcpStream) -> std::io::Result<TcpStream> {
            match *self {}
        }
    }
}
