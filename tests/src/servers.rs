//! Real replica sets of `mongod` on loopback, started in a second or two and gone with their handle.
//!
//! Every guarantee of the collector is a statement about what servers do, so the tests ask servers. A set has
//! one member unless a test needs fail-over; elections are quick, caches small, journaling as in production.
//! The servers' own fail points make the faults. No set is shared between tests and none listens elsewhere
//! than 127.0.0.1.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::{ClientOptions, WriteConcern};

use crate::paths::Scratch;
use crate::proxy::Proxy;

mod certificates;
pub mod cluster;
mod member;
mod options;
pub mod wire;

pub use certificates::Certificates;
use member::Member;
pub use member::free_port;
pub use options::{DEFAULT_VERSION, Options, User, default_version};

/// How long a set may take to get a primary before the test gives up. Generous: machines are shared.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// A running replica set.
#[derive(Debug)]
pub struct ReplicaSet {
    options: Options,
    members: Vec<Member>,
    client: Client,
    // After the members, so that they are dead when their files go.
    scratch: Scratch,
}

impl ReplicaSet {
    /// Starts the set, initiates it, creates its users, and returns when it has a primary.
    ///
    /// # Errors
    /// When the server of that version is not installed (the message names the command that installs it),
    /// does not start (the message carries the end of its log), or elects nobody in time.
    pub async fn start(options: Options) -> Result<Self> {
        let scratch = Scratch::new(&options.name)?;
        let key = options.key_file(scratch.path())?;
        let mut members = Vec::new();
        for number in 0..options.members {
            let dir = scratch.path().join(format!("m{number}"));
            members.push(Member::start(&options, dir, key.as_deref())?);
        }
        for member in &mut members {
            member.wait_up(READY_WITHIN).await?;
            if options.proxied {
                member.proxy = Some(Proxy::start(member.port).await?);
            }
        }
        let first = members.first().context("a set has at least one member")?;
        initiate(&options, first, &members).await?;
        // The harness itself does not go through a proxy where one member is the whole set.
        let alone = options.proxied && members.len() == 1;
        let own =
            if alone { direct_uri(&options, first, options.root()) } else { uri(&options, &members, options.root()) };
        let client = connect(&own).await?;
        let set = Self { options, members, client, scratch };
        set.primary().await?;
        set.wait_secondaries().await?;
        Ok(set)
    }

    /// A set of one member without authentication, of the default version.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn single() -> Result<Self> {
        Self::start(Options::default()).await
    }

    /// Whether the set is of this series or a newer one. Where it is not, the reason why a test leaves something out is
    /// printed, so that no run looks more complete than it was.
    #[must_use]
    pub fn has(&self, feature: &str, since: (u32, u32)) -> bool {
        options::has(&self.options.version, feature, since)
    }

    /// The first two numbers of the set's version, such as (4, 4).
    #[must_use]
    pub fn series(&self) -> (u32, u32) {
        options::series(&self.options.version)
    }

    /// The connection string with the full rights of the set: the root user's where the set has users.
    #[must_use]
    pub fn uri(&self) -> String {
        uri(&self.options, &self.members, self.options.root())
    }

    /// The connection string as another user.
    #[must_use]
    pub fn uri_as(&self, name: &str, password: &str) -> String {
        uri(&self.options, &self.members, Some((name, password)))
    }

    /// The connection string as the first user of [`Options::users`]; [`Self::uri`] where there is none.
    #[must_use]
    pub fn uri_as_user(&self) -> String {
        self.options.users.first().map_or_else(|| self.uri(), |user| self.uri_as(&user.name, &user.password))
    }

    /// A connection string of one member alone, with full rights.
    #[must_use]
    pub fn member_uri(&self, member: usize) -> String {
        self.members
            .get(member)
            .map(|member| direct_uri(&self.options, member, self.options.root()))
            .unwrap_or_default()
    }

    /// A client with full rights, connected to the whole set; cheap to clone.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client of one member alone, with full rights.
    ///
    /// # Errors
    /// When the connection string is refused.
    pub async fn member_client(&self, member: usize) -> Result<Client> {
        connect(&self.member_uri(member)).await
    }

    /// The version the set was started with.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.options.version
    }

    /// How many members the set was started with.
    #[must_use]
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// The port of a member on 127.0.0.1.
    #[must_use]
    pub fn port(&self, member: usize) -> u16 {
        self.members.get(member).map_or(0, |member| member.port)
    }

    /// The proxy before a member; only where the set was started behind proxies.
    ///
    /// # Errors
    /// When there is none.
    pub fn proxy(&self, member: usize) -> Result<&Proxy> {
        let found = self.members.get(member).and_then(|member| member.proxy.as_ref());
        found.context("the set was not started behind proxies")
    }

    /// The process id of a member; none while it is killed.
    #[must_use]
    pub fn pid(&self, member: usize) -> Option<u32> {
        self.members.get(member).and_then(Member::pid)
    }

    /// The directory that holds the members' data and logs.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.scratch.path()
    }

    /// Waits until a member is a writable primary and returns its number.
    ///
    /// # Errors
    /// When there is none within a minute and a half.
    pub async fn primary(&self) -> Result<usize> {
        let started = Instant::now();
        loop {
            for number in 0..self.members.len() {
                if self.pid(number).is_some() && self.is_primary(number).await {
                    return Ok(number);
                }
            }
            anyhow::ensure!(started.elapsed() < READY_WITHIN, "set {} has no primary", self.options.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A member that is not the primary now.
    ///
    /// # Errors
    /// When there is no primary, or no other running member.
    pub async fn secondary(&self) -> Result<usize> {
        let primary = self.primary().await?;
        let found = (0..self.members.len()).find(|number| *number != primary && self.pid(*number).is_some());
        found.context("the set has no secondary")
    }

    /// Makes the primary step down for two seconds and waits for the next one: another member where there is
    /// one, the same again where there is not.
    ///
    /// # Errors
    /// When the command fails or nobody is elected.
    pub async fn step_down(&self) -> Result<usize> {
        let (started, command) =
            (Instant::now(), doc! { "replSetStepDown": 2, "secondaryCatchUpPeriodSecs": 1, "force": true });
        // Under load it may not get its lock in time, and another one may lead by now.
        while let Err(error) = self.admin(self.primary().await?, command.clone()).await {
            anyhow::ensure!(started.elapsed() < READY_WITHIN, "step down: {error:#}");
        }
        self.primary().await
    }

    /// Kills a member with SIGKILL.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        self.member_mut(member)?.kill();
        Ok(())
    }

    /// Starts a killed member again on its own data and waits until it answers.
    ///
    /// # Errors
    /// When there is no such member or it does not come up.
    pub async fn restart(&mut self, member: usize) -> Result<()> {
        let options = self.options.clone();
        let key = options.key_file(self.scratch.path())?;
        let member = self.member_mut(member)?;
        member.restart(&options, key.as_deref())?;
        member.wait_up(READY_WITHIN).await
    }

    /// Has the set read collections by name alone, as servers before 6.0 do: by an older feature compatibility version.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn take_no_identities(&self) -> Result<()> {
        if self.has("reads by a collection's identity", (6, 0)) {
            self.admin(self.primary().await?, doc! { "setFeatureCompatibilityVersion": "5.0" }).await?;
        }
        Ok(())
    }

    /// Freezes a member (SIGSTOP): it keeps its sockets and answers nothing.
    ///
    /// # Errors
    /// When there is no such running member.
    pub fn pause(&mut self, member: usize) -> Result<()> {
        self.member_mut(member)?.signal("STOP")
    }

    /// Lets a frozen member go on (SIGCONT).
    ///
    /// # Errors
    /// When there is no such running member.
    pub fn resume(&mut self, member: usize) -> Result<()> {
        self.member_mut(member)?.signal("CONT")
    }

    /// Makes commands of the primary fail through the server's `failCommand` fail point.
    ///
    /// `mode` is `{ times: n }`, `{ skip: n }` or `"alwaysOn"`; `data` as the server documents it, for example
    /// `{ failCommands: ["insert"], errorCode: 91 }` or `{ …, closeConnection: true }` or `{ …, writeConcernError: {…} }`.
    ///
    /// # Errors
    /// When the server refuses the fail point.
    pub async fn fail_command(&self, mode: impl Into<bson::Bson>, data: Document) -> Result<()> {
        let primary = self.primary().await?;
        self.fail_point(primary, "failCommand", mode, data).await
    }

    /// Turns the `failCommand` fail point of every running member off.
    ///
    /// # Errors
    /// When a member does not answer.
    pub async fn heal_commands(&self) -> Result<()> {
        for number in 0..self.members.len() {
            if self.pid(number).is_some() {
                self.fail_point(number, "failCommand", "off", doc! {}).await?;
            }
        }
        Ok(())
    }

    /// Keeps members from fetching what the primary writes, or lets them fetch again.
    ///
    /// # Errors
    /// When a member does not answer.
    pub async fn hold_back(&self, members: &[usize], held: bool) -> Result<()> {
        for member in members {
            let mode = if held { "alwaysOn" } else { "off" };
            self.fail_point(*member, "stopReplProducer", mode, doc! {}).await?;
        }
        Ok(())
    }

    /// Sets any fail point of one member, such as `rsSyncApplyStop`.
    ///
    /// # Errors
    /// When the server refuses the fail point.
    pub async fn fail_point(
        &self,
        member: usize,
        name: &str,
        mode: impl Into<bson::Bson>,
        data: Document,
    ) -> Result<()> {
        let mut command = doc! { "configureFailPoint": name, "mode": mode };
        if !data.is_empty() {
            command.insert("data", data);
        }
        self.admin(member, command).await.with_context(|| format!("set fail point {name}"))?;
        Ok(())
    }

    /// Runs a command on the admin database of one member.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn admin(&self, member: usize, command: Document) -> Result<Document> {
        let client = self.member_client(member).await?;
        let reply = client.database("admin").run_command(command).await;
        client.shutdown().immediate(true).await;
        Ok(reply?)
    }

    async fn is_primary(&self, member: usize) -> bool {
        let reply = tokio::time::timeout(Duration::from_secs(5), self.admin(member, doc! { "hello": 1 })).await;
        reply.is_ok_and(|reply| reply.is_ok_and(|reply| reply.get_bool("isWritablePrimary").unwrap_or_default()))
    }

    async fn wait_secondaries(&self) -> Result<()> {
        let started = Instant::now();
        for number in 0..self.members.len() {
            loop {
                let hello = self.admin(number, doc! { "hello": 1 }).await?;
                if hello.get_bool("secondary")? || hello.get_bool("isWritablePrimary")? {
                    break;
                }
                anyhow::ensure!(started.elapsed() < READY_WITHIN, "member {number} does not finish its start");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    fn member_mut(&mut self, member: usize) -> Result<&mut Member> {
        let count = self.members.len();
        self.members.get_mut(member).with_context(|| format!("member {member} of a set of {count}"))
    }
}

/// Connects with timeouts that suit a server on the same machine.
///
/// # Errors
/// When the connection string is refused; nothing is sent yet.
pub async fn connect(uri: &str) -> Result<Client> {
    let mut options = ClientOptions::parse(uri).await.with_context(|| format!("parse {uri}"))?;
    options.server_selection_timeout = Some(Duration::from_secs(45));
    options.heartbeat_freq = Some(Duration::from_millis(500));
    // The server's default is majority, which waits for the disk: a load would write some hundreds a second.
    options.write_concern = Some(WriteConcern::nodes(1));
    options.app_name = Some("oplogue-tests".to_owned());
    Ok(Client::with_options(options)?)
}

fn uri(options: &Options, members: &[Member], login: Option<(&str, &str)>) -> String {
    let hosts: Vec<String> = members.iter().map(|member| format!("127.0.0.1:{}", member.known_port())).collect();
    let (login, source, tls) = (credentials(login), source(login), tls(options));
    format!("mongodb://{login}{}/?replicaSet={}{source}{tls}", hosts.join(","), options.name)
}

/// What a client needs to trust the servers; `mongo_ssl_root_ca_file` says the same to the collector.
fn tls(options: &Options) -> String {
    let authority = options.tls.as_ref().map(|tls| format!("&tls=true&tlsCAFile={}", tls.authority().display()));
    authority.unwrap_or_default()
}

fn direct_uri(options: &Options, member: &Member, login: Option<(&str, &str)>) -> String {
    let port = member.port;
    let (login, source, tls) = (credentials(login), source(login), tls(options));
    format!("mongodb://{login}127.0.0.1:{port}/?directConnection=true{source}{tls}")
}

fn credentials(login: Option<(&str, &str)>) -> String {
    login.map(|(name, password)| format!("{name}:{password}@")).unwrap_or_default()
}

fn source(login: Option<(&str, &str)>) -> &'static str {
    if login.is_some() { "&authSource=admin" } else { "" }
}

/// Initiates the set and, where it has authentication, creates root through the localhost exception and then
/// the users as root.
async fn initiate(options: &Options, first: &Member, members: &[Member]) -> Result<()> {
    let client = connect(&direct_uri(options, first, None)).await?;
    let admin = client.database("admin");
    admin.run_command(options.initiate_command(members)).await.context("initiate the set")?;
    let started = Instant::now();
    loop {
        let hello = admin.run_command(doc! { "hello": 1 }).await.context("ask for the primary")?;
        if hello.get_bool("isWritablePrimary")? {
            break;
        }
        anyhow::ensure!(started.elapsed() < READY_WITHIN, "set {} elects nobody", options.name);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if let Some((name, password)) = options.root() {
        let root = User::new(name, password, &[("root", "admin")]);
        admin.run_command(root.create_command(members.len())).await.context("create the root user")?;
        let client = connect(&direct_uri(options, first, options.root())).await?;
        for user in &options.users {
            let reply = client.database("admin").run_command(user.create_command(members.len())).await;
            reply.with_context(|| format!("create user {}", user.name))?;
        }
        client.shutdown().immediate(true).await;
    }
    client.shutdown().immediate(true).await;
    Ok(())
}
