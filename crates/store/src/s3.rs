//! Stores in buckets.

use crate::Error;
use crate::files::Place;

/// Opens `bucket/prefix`. Endpoint, region, credentials and whether HTTP will do are in the `AWS_*` variables.
#[cfg(feature = "s3")]
pub(crate) fn open(location: &str, rest: &str) -> Result<Place, Error> {
    use std::sync::Arc;
    use std::time::Duration;

    use object_store::aws::AmazonS3Builder;
    use object_store::prefix::PrefixStore;
    use object_store::{ObjectStore, RetryConfig};

    let wrong = |problem: String| Error::Location { place: location.into(), problem };
    let rest = rest.trim_end_matches('/');
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(wrong("has no bucket; give s3://bucket/prefix".into()));
    }
    // A prefix is computed again sooner than a server is waited for.
    let retry = RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(30), ..RetryConfig::default() };
    let store = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build();
    let store = store.map_err(|e| wrong(format!("{e}; set AWS_ACCESS_KEY_ID and the other AWS_* variables")))?;
    let store: Arc<dyn ObjectStore> =
        if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(Place { quick: Arc::clone(&store), store, folder: None })
}

/// Says that there are none in this program.
#[cfg(not(feature = "s3"))]
pub(crate) fn open(location: &str, _rest: &str) -> Result<Place, Error> {
    let problem = "this program was built without buckets; build it with `--features s3`, or give a folder".into();
    Err(Error::Location { place: location.into(), problem })
}
