//! A TCP proxy of our own between the collector and a server: it stalls, cuts, delays, half-closes and holds back.
//!
//! A network fails in ways that no fail point of a server shows: bytes stop without a reset, one connection dies
//! while its neighbours live, and what a client sent long ago arrives after it has given up. The proxy makes these
//! faults on request and at an exact moment. It never looks at more than the bytes that pass, and changes none.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the proxy does to every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weather {
    /// Bytes pass.
    #[default]
    Fair,
    /// Bytes are kept, in both directions and on every connection, old and new; none is lost.
    Stalled,
    /// What goes to the server passes; answers are kept.
    Deaf,
    /// Every piece waits that long before it goes on.
    Slow(Duration),
}

#[derive(Debug, Clone, Default)]
struct State {
    weather: Weather,
    /// A client's piece that contains this is kept, with everything behind it on its connection.
    trap: Option<Vec<u8>>,
    /// Changes when what the trap holds is let go.
    released: u64,
    /// Changes when every connection of the moment is broken off.
    cut: u64,
    /// Changes when the clients of held connections are told that theirs is gone.
    abandoned: u64,
}

#[derive(Debug)]
struct Shared {
    state: watch::Sender<State>,
    held: AtomicUsize,
}

/// A listener on 127.0.0.1 in front of one server. Ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `server` of 127.0.0.1.
    ///
    /// # Errors
    /// When the machine has no free port.
    pub async fn start(server: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen for the proxy")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared { state: watch::Sender::new(State::default()), held: AtomicUsize::new(0) });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&shared)));
        Ok(Self { port, shared, _tasks: tasks })
    }

    /// Where clients connect.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes what happens to every connection, from now on.
    pub fn weather(&self, weather: Weather) {
        self.shared.state.send_modify(|state| state.weather = weather);
    }

    /// Breaks off every connection of this moment; new ones are taken.
    pub fn cut(&self) {
        self.shared.state.send_modify(|state| state.cut += 1);
    }

    /// From now on holds back the first client's piece that contains `bytes`, and what follows it on its connection,
    /// until [`Self::release`]. Other connections pass. Holds one connection only.
    pub fn trap(&self, bytes: &[u8]) {
        self.shared.state.send_modify(|state| state.trap = Some(bytes.to_vec()));
    }

    /// Waits until the trap holds a connection.
    ///
    /// # Errors
    /// When it holds none in time.
    pub async fn caught(&self, timeout: Duration) -> Result<()> {
        let started = std::time::Instant::now();
        while self.shared.held.load(Ordering::Acquire) == 0 {
            anyhow::ensure!(started.elapsed() < timeout, "the proxy's trap caught nothing within {timeout:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Closes the client's end of held connections, as a broken network would; the server's end stays open and
    /// what is held is still on its way.
    pub fn abandon(&self) {
        self.shared.state.send_modify(|state| state.abandoned += 1);
    }

    /// Delivers what the trap holds.
    pub fn release(&self) {
        self.shared.state.send_modify(|state| state.released += 1);
    }
}

async fn accept(listener: TcpListener, server: u16, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(connect(client, server, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, server: u16, shared: Arc<Shared>) {
    let cut = shared.state.borrow().cut;
    let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, server))).await else { return };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut broken = shared.state.subscribe();
    // Says to the way back that the client's end is to be closed.
    let (gone, closed) = watch::channel(false);
    let up = upstream(from_client, to_server, &gone, &shared);
    let down = downstream(from_server, to_client, closed, shared.state.subscribe());
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        _ = broken.wait_for(|state| state.cut != cut) => {}
    }
}

/// Client to server. A held piece stays here, whatever becomes of the client, until it is released.
async fn upstream(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, gone: &watch::Sender<bool>, shared: &Shared) {
    let mut state = shared.state.subscribe();
    let mut piece = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut piece).await.unwrap_or(0);
        let bytes = piece.get(..length).unwrap_or_default();
        if springs(bytes, shared) {
            let before = state.borrow().clone();
            shared.held.fetch_add(1, Ordering::AcqRel);
            let moved = |state: &State| state.released != before.released || state.abandoned != before.abandoned;
            state.wait_for(moved).await.ok();
            if state.borrow().released == before.released {
                gone.send_replace(true);
                drop(from);
                state.wait_for(|state| state.released != before.released).await.ok();
                to.write_all(bytes).await.ok();
                to.shutdown().await.ok();
                return;
            }
        }
        if !pass(&mut state, |weather| weather == Weather::Stalled).await || length == 0 {
            break;
        }
        if to.write_all(bytes).await.is_err() {
            break;
        }
    }
    to.shutdown().await.ok();
}

/// Server to client, until the server ends or the client's end is to be closed.
async fn downstream(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut closed: watch::Receiver<bool>,
    mut state: watch::Receiver<State>,
) {
    let mut piece = vec![0; 64 * 1024];
    let answers = async {
        loop {
            let length = from.read(&mut piece).await.unwrap_or(0);
            let kept = |weather| matches!(weather, Weather::Stalled | Weather::Deaf);
            if !pass(&mut state, kept).await || length == 0 {
                break;
            }
            if to.write_all(piece.get(..length).unwrap_or_default()).await.is_err() {
                break;
            }
        }
        to.shutdown().await.ok();
    };
    let ended = tokio::select! {
        () = answers => true,
        _ = closed.wait_for(|closed| *closed) => false,
    };
    if !ended {
        drop(to);
        // The server's answers go nowhere; its end stays open until it closes it.
        while from.read(&mut piece).await.is_ok_and(|length| length > 0) {}
    }
}

/// Takes the trap away when these bytes are what it waits for.
fn springs(bytes: &[u8], shared: &Shared) -> bool {
    let waits = |state: &State| {
        let trap = state.trap.as_deref().filter(|trap| !trap.is_empty());
        trap.is_some_and(|trap| bytes.windows(trap.len()).any(|window| window == trap))
    };
    shared.state.send_if_modified(|state| {
        let springs = waits(state);
        if springs {
            state.trap = None;
        }
        springs
    })
}

/// Waits while bytes are kept; false when the proxy is gone.
async fn pass(state: &mut watch::Receiver<State>, kept: impl Fn(Weather) -> bool) -> bool {
    let weather = match state.wait_for(|state| !kept(state.weather)).await {
        Ok(state) => state.weather,
        Err(_) => return false,
    };
    if let Weather::Slow(delay) = weather {
        tokio::time::sleep(delay).await;
    }
    true
}
