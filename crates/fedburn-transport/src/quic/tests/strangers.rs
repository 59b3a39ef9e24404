//! Who may not take part never gets a byte of a model or a plan.

use std::time::SystemTime;

use fedburn_testkit::schema;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::super::identity::{Authority, PrivateKey, Role, SERVER_NAME};
use super::super::runtime::EndpointThread;
use super::super::stream::ask;
use super::super::{tls, tuning};
use super::raw::Raw;
use super::*;
use crate::wire::{
    BlobRef, Body, CloseCode, Enroll, Extensions, GetManifest, Hash, Hello, Message, Refusal, UploadBegin, Watch,
};

type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A connection with these credentials, or none.
struct Stranger {
    thread: EndpointThread,
    connection: Result<quinn::Connection, quinn::ConnectionError>,
    _endpoint: quinn::Endpoint,
}

impl Stranger {
    fn connect(server: &QuicServer<Flex>, credentials: Option<Credentials>) -> Self {
        let thread = EndpointThread::start("stranger").unwrap();
        let pin = server.join_string().pin();
        let (endpoint, connection) = thread.handle().block_on(async {
            let socket = tuning::socket("127.0.0.1:0".parse().unwrap()).unwrap();
            let config = tuning::endpoint_config(6500).unwrap();
            let endpoint = quinn::Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime)).unwrap();
            let crypto = tls::client(pin, credentials, tls::provider()).unwrap();
            let mut config = quinn::ClientConfig::new(Arc::new(crypto));
            config.transport_config(tuning::client_transport(&ClientConfig::default()));
            let connecting = endpoint.connect_with(config, server.address(), SERVER_NAME).unwrap();
            (endpoint, connecting.await)
        });
        Self { thread, connection, _endpoint: endpoint }
    }

    /// Asks; the server's answer if it gives any.
    fn ask<M: Body>(&self, message: &M) -> Option<Message> {
        let connection = self.connection.as_ref().ok()?;
        self.thread.handle().block_on(ask(connection, message)).ok()
    }

    /// Why the connection ended.
    fn end(&self) -> quinn::ConnectionError {
        match &self.connection {
            Ok(connection) => self.thread.handle().block_on(connection.closed()),
            Err(error) => error.clone(),
        }
    }

    /// The code with which the server closed.
    fn code(&self) -> CloseCode {
        match self.end() {
            quinn::ConnectionError::ApplicationClosed(c) => CloseCode::from_number(c.error_code.into_inner()).unwrap(),
            other => panic!("not closed by the server: {other:?}"),
        }
    }
}

/// Everything that might give something away, asked one by one on new connections: nothing is answered.
fn learns_nothing(server: &QuicServer<Flex>, plan: &BlobRef, credentials: impl Fn() -> Option<Credentials>) {
    let ext = Extensions::default;
    let begin = UploadBegin { num_values: 3, ..UploadBegin::default() };
    assert_eq!(Stranger::connect(server, credentials()).ask(&Hello::default()), None);
    assert_eq!(Stranger::connect(server, credentials()).ask(&Watch { ext: ext() }), None);
    assert_eq!(Stranger::connect(server, credentials()).ask(&GetManifest { root: plan.root, ext: ext() }), None);
    assert_eq!(Stranger::connect(server, credentials()).ask(&begin), None);
}

fn site() -> (Site, QuicServer<Flex>, BlobRef) {
    let site = Site::new(schema(&[3]));
    let server = site.server();
    let plan = site.plan().encode().unwrap().name();
    (site, server, plan)
}

fn credentials(authority: &Authority, key: &PrivateKey, start: SystemTime, lifetime: Duration) -> Credentials {
    let leaf = authority.issue_for(key.pair(), key.node_id(), Role::Node, start, lifetime).unwrap();
    (vec![leaf, authority.certificate().clone()], key.to_der())
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn without_a_certificate_nothing_is_answered_but_an_enrolment() {
    let (_site, server, plan) = site();
    learns_nothing(&server, &plan, || None);
    let stranger = Stranger::connect(&server, None);
    assert_eq!(stranger.ask(&Hello::default()), None);
    assert_eq!(stranger.code(), CloseCode::Unauthenticated);

    let stranger = Stranger::connect(&server, None);
    let enroll = Enroll { csr: vec![1; 108].into(), mac: Hash([2; 32]), ext: Extensions::default() };
    match stranger.ask(&enroll) {
        Some(Message::Refused(refused)) => assert_eq!(refused.code, Refusal::Enrolment),
        other => panic!("{other:?}"),
    }
    assert_eq!(stranger.ask(&Hello::default()), None, "one request, and nothing after it");
    assert!(server.nodes().list().is_empty());
}

#[test]
fn certificates_of_other_authorities_are_refused() {
    let (site, server, plan) = site();
    let other = Authority::open(&site.node_dir("server").join("..")).unwrap();
    let key = PrivateKey::generate().unwrap();
    server.nodes().allow(key.node_id()).unwrap();
    let made = || Some(credentials(&other, &key, SystemTime::now(), DAY));
    learns_nothing(&server, &plan, made);
    let end = Stranger::connect(&server, made()).end();
    assert!(matches!(end, quinn::ConnectionError::ConnectionClosed(_)), "refused by TLS: {end}");
}

#[test]
fn certificates_that_are_over_are_refused() {
    let (site, server, plan) = site();
    let authority = Authority::open(&site.node_dir("server")).unwrap();
    let key = PrivateKey::generate().unwrap();
    server.nodes().allow(key.node_id()).unwrap();
    learns_nothing(&server, &plan, || Some(credentials(&authority, &key, SystemTime::now() - 3 * DAY, DAY)));
    let good = Stranger::connect(&server, Some(credentials(&authority, &key, SystemTime::now(), DAY)));
    assert!(matches!(good.ask(&Hello::default()), Some(Message::Welcome(_))), "the same key with a good certificate");
}

#[test]
fn nodes_that_nobody_admitted_are_refused() {
    let (site, server, plan) = site();
    let authority = Authority::open(&site.node_dir("server")).unwrap();
    let key = PrivateKey::generate().unwrap();
    learns_nothing(&server, &plan, || Some(credentials(&authority, &key, SystemTime::now(), DAY)));
}

#[test]
fn a_node_cannot_be_the_server() {
    let (site, server, _) = site();
    let authority = Authority::open(&site.node_dir("server")).unwrap();
    let (key, provider) = (PrivateKey::generate().unwrap(), tls::provider());
    let (chain, key) = credentials(&authority, &key, SystemTime::now(), DAY);
    let thread = EndpointThread::start("impostor").unwrap();
    let error = thread.handle().block_on(async {
        let crypto = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth();
        let mut crypto = crypto.with_single_cert(chain, key).unwrap();
        crypto.alpn_protocols = vec![crate::wire::limits::PROTOCOL.to_vec()];
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(crypto).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let impostor = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = impostor.local_addr().unwrap();
        tokio::spawn(async move {
            while let Some(incoming) = impostor.accept().await {
                let _ = incoming.await;
            }
        });
        let crypto = tls::client(server.join_string().pin(), None, provider).unwrap();
        let node = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        node.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), address, SERVER_NAME).unwrap().await.unwrap_err()
    });
    assert!(matches!(error, quinn::ConnectionError::TransportError(_)), "{error}");
}

#[test]
fn a_node_that_is_revoked_is_cut_off_at_once_and_stays_out() {
    let (site, server, _) = site();
    let id = site.node("a").id();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    // Connected, but not announced.
    let idle = Raw::connect(&site, &server, "a");
    let began = std::time::Instant::now();
    // Another process does it.
    NodeRegistry::open(&site.node_dir("server")).unwrap().revoke(id).unwrap();
    assert_eq!(idle.closed().0, CloseCode::Revoked);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let error = client.next().unwrap_err().to_string();
    assert!(error.contains("revoked"), "{error}");
    eventually("its clients are gone", || server.clients().is_empty());
    let refused = join(&server.join_string(), site.node("a"), client_config()).err().unwrap().to_string();
    assert!(refused.contains("revoked"), "{refused}");
}

#[test]
fn a_wrong_secret_or_authority_in_the_join_string_is_an_error() {
    let (site, server, _) = site();
    let text = server.join_string().to_string();
    let (rest, secret) = text.rsplit_once(':').unwrap();
    let (rest, pin) = rest.rsplit_once(':').unwrap();
    let other = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa";
    for (text, says) in [
        (format!("{rest}:{pin}:{other}"), "secret"),
        (format!("{rest}:{other}:{secret}"), "join string"),
        (format!("{rest}:{pin}:"), "no secret"),
    ] {
        let error = join(&text.parse().unwrap(), site.node("a"), client_config()).err().unwrap().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    assert!(join(&server.join_string(), site.node("a"), client_config()).is_ok());
}

#[test]
fn an_operators_certificates_are_trusted_and_nobody_enrols() {
    let site = Site::new(schema(&[3]));
    // The operator's authority makes both certificates.
    let made = site.node_dir("operator");
    std::fs::create_dir(&made).unwrap();
    drop(ServerIdentity::open(&made).unwrap());
    let (ca, leaf, key) = (made.join("ca.pem"), made.join("server.pem"), made.join("server.key"));
    let identity = ServerIdentity::from_files(&site.node_dir("server"), &ca, &leaf, &key).unwrap();
    let (files, schema) = (RunFiles::new(site.dir.path(), RoundIndex(0)), site.schema.clone());
    let server = QuicServer::<Flex>::start(site.config.clone(), identity, site.plan(), schema, FlexDevice, files);
    let server = server.unwrap();
    assert!(server.join_string().to_string().ends_with(':'), "no secret");
    assert!(join(&server.join_string(), site.node("a"), client_config()).is_err());

    let authority = Authority::open(&made).unwrap();
    let node_key = PrivateKey::open(&site.node_dir("a").join("node.key")).unwrap();
    let (chain, _) = credentials(&authority, &node_key, SystemTime::now(), DAY);
    site.node("a").keep(chain).unwrap();
    assert!(join(&server.join_string(), site.node("a"), client_config()).is_ok());
    server.nodes().revoke(node_key.node_id()).unwrap();
    assert!(join(&server.join_string(), site.node("a"), client_config()).is_err());
}

#[test]
fn who_says_nothing_is_cut_off() {
    let mut site = Site::new(schema(&[3]));
    site.config.hello_timeout_secs = 1;
    let server = site.server();
    assert_eq!(Stranger::connect(&server, None).code(), CloseCode::HelloTimeout);
    drop(join(&server.join_string(), site.node("a"), client_config()).unwrap());
    let authority = Authority::open(&site.node_dir("server")).unwrap();
    let key = PrivateKey::open(&site.node_dir("a").join("node.key")).unwrap();
    let silent = Stranger::connect(&server, Some(credentials(&authority, &key, SystemTime::now(), DAY)));
    assert_eq!(silent.code(), CloseCode::HelloTimeout);
}

#[test]
fn an_old_certificate_is_renewed_on_the_way() {
    let (site, server, _) = site();
    drop(join(&server.join_string(), site.node("a"), client_config()).unwrap());
    let authority = Authority::open(&site.node_dir("server")).unwrap();
    let key = PrivateKey::open(&site.node_dir("a").join("node.key")).unwrap();
    let (chain, _) = credentials(&authority, &key, SystemTime::now() - 70 * DAY, 90 * DAY);
    site.node("a").keep(chain).unwrap();
    assert!(site.node("a").wants_renewal());
    drop(join(&server.join_string(), site.node("a"), client_config()).unwrap());
    assert!(!site.node("a").wants_renewal());
}
