//! The first packets of a connection.
//!
//! ```text
//!   client   SSLRequest            'N' (no TLS yet), at most once; GSSENCRequest likewise
//!            StartupMessage 3.0    AuthenticationOk, ParameterStatus..., BackendKeyData, ReadyForQuery
//!            CancelRequest         nothing; the connection closes
//! ```
//!
//! Authentication is trust: whoever reaches the port may be anyone. Newer minor versions are negotiated down to 3.0.
//!
//! Not here: passwords, TLS, replication (0A000).

use super::cancel::CancelKey;
use super::channel::Channel;
use super::connection::Stop;
use super::message::Body;
use super::session::SqlSession;
use crate::settings::SERVER_VERSION;
use bytes::{Buf, Bytes};
use pgwire::messages::PgWireBackendMessage as Message;
use pgwire::messages::response::{ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey};
use tessera_proto::{Error, Result};

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
/// The version we speak, in full: what PostgreSQL sends, and clients take the minor part of.
const PROTOCOL_3_0: i32 = 3 << 16;

/// Settings whose value is told at the start and whenever it changes, by the names clients know them under.
pub(super) const REPORTED: [&str; 7] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "default_transaction_read_only",
    "standard_conforming_strings",
];

/// What a client wants.
#[derive(Debug, PartialEq)]
pub(super) enum Opening {
    /// A session.
    Session(Startup),
    /// To cancel what a connection of this number and secret is doing.
    Cancel {
        /// The number.
        number: i32,
        /// The secret.
        secret: i32,
    },
}

/// A startup message.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Startup {
    /// Minor protocol version; ours is 0.
    pub(super) minor: u16,
    /// User name.
    pub(super) user: String,
    /// Database; the user's name unless given.
    pub(super) database: String,
    /// `application_name`.
    pub(super) application_name: String,
    /// Other settings, in order.
    pub(super) settings: Vec<(String, String)>,
    /// Protocol options we do not know.
    pub(super) unknown: Vec<String>,
}

/// Reads packets until the client says what it wants.
///
/// # Errors
/// [`Stop::Fatal`] for anything that is not the protocol.
pub(super) async fn open(channel: &mut Channel) -> Result<Opening, Stop> {
    let (mut tls_asked, mut gss_asked) = (false, false);
    loop {
        let mut packet = channel.read_startup().await?;
        let asked = match packet.get_u32() {
            SSL_REQUEST => &mut tls_asked,
            GSSENC_REQUEST => &mut gss_asked,
            CANCEL_REQUEST => return read_cancel(packet).map_err(Stop::Fatal),
            version => return read_startup(version, packet).map(Opening::Session).map_err(Stop::Fatal),
        };
        if std::mem::replace(asked, true) {
            return Err(Stop::Fatal(Error::protocol("encryption was refused already")));
        }
        channel.put_bytes(b"N");
        channel.flush().await?;
    }
}

fn read_cancel(packet: Bytes) -> Result<Opening> {
    let mut body = Body(packet);
    Ok(Opening::Cancel {
        number: body.i32()?,
        secret: body.i32()?,
    })
}

fn read_startup(version: u32, packet: Bytes) -> Result<Startup> {
    let (major, minor) = (version >> 16, version as u16);
    if major != 3 {
        let message = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0");
        return Err(Error::unsupported(message, "use a client for PostgreSQL 7.4 or later"));
    }
    let mut startup = Startup {
        minor,
        ..Startup::default()
    };
    let mut body = Body(packet);
    loop {
        let name = body.text()?;
        if name.is_empty() {
            break;
        }
        let value = body.text()?;
        startup.take(name, value)?;
    }
    if startup.user.is_empty() {
        return Err(Error::new(
            "28000",
            "no PostgreSQL user name specified in startup packet",
        ));
    }
    if startup.database.is_empty() {
        startup.database.clone_from(&startup.user);
    }
    Ok(startup)
}

impl Startup {
    fn take(&mut self, name: String, value: String) -> Result<()> {
        match name.as_str() {
            "user" => self.user = value,
            "database" => self.database = value,
            "application_name" => self.application_name = value,
            "options" => self.take_options(&value)?,
            "replication" if !matches!(value.as_str(), "false" | "off" | "no" | "0") => {
                return Err(Error::unsupported(
                    "replication connections are not supported",
                    "shards replicate by themselves",
                ));
            }
            "replication" => {}
            // "No conversion" is what happens for UTF-8, and what clients in the C locale ask for.
            "client_encoding" if value.eq_ignore_ascii_case("sql_ascii") => {}
            _ if name.starts_with("_pq_.") => self.unknown.push(name),
            _ => self.settings.push((name, value)),
        }
        Ok(())
    }

    /// `-c name=value`, `-cname=value` and `--name=value`; a backslash keeps a blank from ending a word.
    fn take_options(&mut self, options: &str) -> Result<()> {
        let words = split_words(options);
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
                (Some(long), _) => long,
                (_, Some("")) => words.next().unwrap_or_default(),
                (_, Some(rest)) => rest,
                _ => {
                    return Err(Error::new(
                        "42601",
                        format!("invalid command-line argument for server process: {word}"),
                    ));
                }
            };
            let Some((name, value)) = setting.split_once('=') else {
                return Err(Error::new("42601", format!("option \"{setting}\" requires a value")));
            };
            self.settings.push((name.replace('-', "_"), value.to_owned()));
        }
        Ok(())
    }
}

fn split_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut escaped) = (vec![], String::new(), false);
    for c in text.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            c if c.is_ascii_whitespace() => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    words
}

/// Sets what the startup message asks for.
///
/// # Errors
/// What SET would say to it.
pub(super) fn apply_settings(session: &mut impl SqlSession, startup: &Startup) -> Result<()> {
    startup
        .settings
        .iter()
        .try_for_each(|(name, value)| session.set_initial(name, value))
}

/// Queues all that a client waits for before its first query; returns what it was told of [`REPORTED`].
pub(super) fn greet(
    channel: &mut Channel,
    session: &impl SqlSession,
    startup: &Startup,
    key: &CancelKey,
) -> Result<Vec<Option<String>>> {
    if startup.minor > 0 || !startup.unknown.is_empty() {
        channel.put(&Message::NegotiateProtocolVersion(NegotiateProtocolVersion::new(
            PROTOCOL_3_0,
            startup.unknown.clone(),
        )))?;
    }
    channel.put(&Message::Authentication(Authentication::Ok))?;
    let fixed = [
        ("server_version", SERVER_VERSION),
        ("server_encoding", "UTF8"),
        ("integer_datetimes", "on"),
        ("in_hot_standby", "off"),
        ("is_superuser", "on"),
        ("session_authorization", startup.user.as_str()),
    ];
    let told: Vec<_> = REPORTED.iter().map(|name| session.setting(name)).collect();
    let current = REPORTED
        .iter()
        .zip(&told)
        .filter_map(|(name, value)| Some((*name, value.as_deref()?)));
    for (name, value) in fixed.into_iter().chain(current) {
        channel.put(&Message::ParameterStatus(ParameterStatus::new(
            name.to_owned(),
            value.replace('\0', ""),
        )))?;
    }
    channel.put(&Message::BackendKeyData(BackendKeyData::new(
        key.number,
        SecretKey::I32(key.secret),
    )))?;
    channel.put(&Message::ReadyForQuery(ReadyForQuery::new(TransactionStatus::Idle)))?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn startup_messages_are_read_with_their_options() {
        let packet =
            Bytes::from_static(b"user\0ann\0options\0-c TimeZone=UTC --search-path=a\\ b -cx.y=1\0_pq_.new\0\x31\0\0");
        let startup = read_startup(3 << 16 | 2, packet).ok();
        let pairs = [("TimeZone", "UTC"), ("search_path", "a b"), ("x.y", "1")];
        let expected = Startup {
            minor: 2,
            user: "ann".into(),
            database: "ann".into(),
            settings: pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
            unknown: vec!["_pq_.new".into()],
            ..Startup::default()
        };
        assert_eq!(startup, Some(expected));
        for (version, packet, code) in [
            (2 << 16, &b"\0"[..], "0A000"),
            (3 << 16, b"\0", "28000"),
            (3 << 16, b"user\0ann\0", "08P01"),
            (3 << 16, b"user\0ann\0options\0-x\0\0", "42601"),
            (3 << 16, b"user\0ann\0replication\0true\0\0", "0A000"),
            (3 << 16, b"user\0\xff\0\0", "22021"),
        ] {
            let error = read_startup(version, Bytes::from_static(packet))
                .map_err(|e| e.code)
                .err();
            assert_eq!(error.as_deref(), Some(code), "{packet:?}");
        }
    }
}
