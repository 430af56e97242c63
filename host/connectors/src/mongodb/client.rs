//! How a client of the driver is made from a connection string and a few settings of ours.
//!
//! Both sides and the checkpoint store connect through here, so that the application name, time-outs and compression
//! are the same everywhere and no password can reach a message. Making a client does not open a connection: the first
//! command does, and what to do when it fails is the pipeline's affair.

use std::path::PathBuf;
use std::time::Duration;

use mongodb::Client;
use mongodb::options::{ClientOptions, Compressor, ReadPreference, SelectionCriteria, ServerAddress, Tls, TlsOptions};
use oplogue_engine::error::{Error, Kind, Result, Side};

use super::alone::WriterName;
use super::classify;

/// The name that the server's log and `currentOp` show.
pub const APP_NAME: &str = "oplogue";

/// Which member of a replica set is read (MongoShake's `mongo_connect_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConnectMode {
    /// The primary only.
    #[default]
    Primary,
    /// A secondary; the primary while there is none.
    SecondaryPreferred,
    /// A secondary only.
    Secondary,
    /// The member that answers quickest.
    Nearest,
    /// The one address of the connection string, whatever its role.
    Standalone,
}

impl ConnectMode {
    /// What the driver needs to pick a server for a command. For [`ConnectMode::Standalone`] the connection itself
    /// decides.
    #[must_use]
    pub fn criteria(self) -> SelectionCriteria {
        SelectionCriteria::ReadPreference(match self {
            Self::Primary => ReadPreference::Primary,
            Self::SecondaryPreferred => ReadPreference::SecondaryPreferred { options: None },
            Self::Secondary => ReadPreference::Secondary { options: None },
            Self::Nearest | Self::Standalone => ReadPreference::Nearest { options: None },
        })
    }
}

/// The settings of a client that do not stand in the connection string.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Which member is read.
    pub mode: ConnectMode,
    /// A certificate authority's file; when present the connection is encrypted.
    pub ca_file: Option<PathBuf>,
    /// Connections a server may have at most; the driver's default of 10 when the string says nothing either.
    pub pool_max: Option<u32>,
    /// How long a command waits for a suitable server, unless the string says `serverSelectionTimeoutMS`.
    pub selection_timeout: Duration,
    /// The run that writes through this client, for its successors to see.
    pub writer: Option<WriterName>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            mode: ConnectMode::Primary,
            ca_file: None,
            pool_max: None,
            selection_timeout: Duration::from_secs(20),
            writer: None,
        }
    }
}

/// Makes a client. No connection is opened yet, except that a `mongodb+srv` string is resolved.
///
/// # Errors
/// `Misconfigured` when the string, its options or the certificate file are wrong. The message holds neither the
/// password nor the user's name.
pub async fn connect(side: Side, uri: &str, options: &ConnectOptions) -> Result<Client> {
    let mut parsed = match ClientOptions::parse(uri).await {
        Ok(parsed) => parsed,
        Err(fault) => return Err(parse_fault(side, uri, &fault)),
    };
    apply(side, &mut parsed, options)?;
    Client::with_options(parsed).map_err(|e| classify::error(side, "make a client from the connection string", e))
}

/// Makes a client of each address of a connection string alone; none when it has only one.
///
/// # Errors
/// As [`connect`].
pub async fn connect_each(side: Side, uri: &str, options: &ConnectOptions) -> Result<Vec<Client>> {
    let parsed = ClientOptions::parse(uri).await.map_err(|fault| parse_fault(side, uri, &fault))?;
    if parsed.hosts.len() < 2 {
        return Ok(Vec::new());
    }
    let each = parsed.hosts.iter().map(|host| {
        let mut alone = parsed.clone();
        alone.hosts = vec![host.clone()];
        alone.direct_connection = Some(true);
        apply(side, &mut alone, options)?;
        Client::with_options(alone).map_err(|e| classify::error(side, "make a client from the connection string", e))
    });
    each.collect()
}

fn apply(side: Side, parsed: &mut ClientOptions, options: &ConnectOptions) -> Result<()> {
    parsed.app_name.get_or_insert_with(|| APP_NAME.to_owned());
    parsed.server_selection_timeout.get_or_insert(options.selection_timeout);
    parsed.connect_timeout.get_or_insert(Duration::from_secs(10));
    parsed.driver_info = options.writer.as_ref().map(WriterName::driver_info);
    if let Some(pool_max) = options.pool_max {
        parsed.max_pool_size.get_or_insert(pool_max);
    }
    if parsed.compressors.is_none() && !parsed.hosts.iter().all(is_loopback) {
        parsed.compressors = Some(vec![Compressor::Zstd { level: Some(1) }, Compressor::Snappy]);
    }
    if let Some(file) = &options.ca_file {
        let mut tls = match parsed.tls.take() {
            Some(Tls::Enabled(tls)) => tls,
            Some(Tls::Disabled) | None => TlsOptions::default(),
        };
        tls.ca_file_path = Some(file.clone());
        parsed.tls = Some(Tls::Enabled(tls));
    }
    if options.mode == ConnectMode::Standalone {
        if parsed.hosts.len() > 1 {
            let text = "mongo_connect_mode = standalone needs a connection string with one address";
            return Err(Error::new(side, Kind::Misconfigured, text));
        }
        parsed.direct_connection = Some(true);
        parsed.repl_set_name = None;
    }
    Ok(())
}

/// On loopback compression only costs: both ends' processors are ours.
#[allow(clippy::wildcard_enum_match_arm, reason = "the driver's addresses are non-exhaustive")]
fn is_loopback(address: &ServerAddress) -> bool {
    match address {
        ServerAddress::Tcp { host, .. } => {
            let ip = host.parse::<std::net::IpAddr>();
            host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
        }
        // A socket in the file system, and whatever else the driver learns to reach.
        _ => true,
    }
}

/// Says what is wrong with a connection string. The driver's message may quote a piece of the string, so it is asked
/// again about the string without its user part; what then is right was wrong in that part.
fn parse_fault(side: Side, uri: &str, fault: &mongodb::error::Error) -> Error {
    let kind = classify::kind(side, fault);
    let Some(bare) = without_user(uri) else {
        return classify::error(side, "read the connection string", fault.clone());
    };
    let text = match mongodb::options::ConnectionString::parse(&bare) {
        Err(fault) => return classify::error(side, "read the connection string", fault),
        Ok(_) if kind == Kind::Misconfigured => {
            "read the connection string: the user name or password must be percent-encoded, \
             or an option needs a user that is not there"
        }
        Ok(_) => "look up the servers that the connection string names",
    };
    Error::new(side, kind, text)
}

fn without_user(uri: &str) -> Option<String> {
    let (scheme, rest) = uri.split_once("://")?;
    let (_, address) = rest.rsplit_once('@')?;
    Some(format!("{scheme}://{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fault(uri: &str) -> String {
        let error = connect(Side::Source, uri, &ConnectOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Misconfigured, "{error}");
        error.to_string()
    }

    #[tokio::test]
    async fn no_part_of_a_password_is_ever_shown() {
        for uri in [
            "mongodb://root:s3cret/pass@host:27017/admin",
            "mongodb://root:s3cret@pass@host:27017/admin",
            "mongodb://root:s3cret%pass@host:27017/admin",
            "mongodb://root:s3cret@host:not-a-port/admin",
            "mongodb://root:s3cret@host:27017/admin?w=-5",
            "mysql://root:s3cret@host",
        ] {
            let text = fault(uri).await;
            assert!(!text.contains("s3cret") && !text.contains("pass@") && !text.contains("root"), "{uri} → {text}");
        }
    }

    #[tokio::test]
    async fn each_address_gets_a_client_where_there_are_several() {
        let options = ConnectOptions::default();
        let count = async |uri| connect_each(Side::Sink, uri, &options).await.unwrap().len();
        assert_eq!(count("mongodb://127.0.0.1:1").await, 0);
        assert_eq!(count("mongodb://127.0.0.1:1,127.0.0.1:2").await, 2);
    }

    #[tokio::test]
    async fn standalone_takes_one_address() {
        let options = ConnectOptions { mode: ConnectMode::Standalone, ..ConnectOptions::default() };
        assert!(connect(Side::Source, "mongodb://127.0.0.1:1,127.0.0.1:2", &options).await.is_err());
        assert!(connect(Side::Source, "mongodb://127.0.0.1:1/?replicaSet=rs", &options).await.is_ok());
    }

    #[tokio::test]
    async fn only_remote_connections_are_compressed() {
        for (uri, compressed) in [("mongodb://127.0.0.1:1,localhost:2", false), ("mongodb://10.1.2.3:1", true)] {
            let mut parsed = ClientOptions::parse(uri).await.unwrap();
            apply(Side::Source, &mut parsed, &ConnectOptions::default()).unwrap();
            assert_eq!(parsed.compressors.is_some(), compressed);
            assert_eq!(parsed.app_name.as_deref(), Some("oplogue"));
        }
    }
}
