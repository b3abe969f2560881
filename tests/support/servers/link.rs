//! A link to a server that can be cut, stalled, reset and restored.

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// The behaviour of a [`Link`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Passing {
    /// Forwards all data.
    Open,
    /// Closes every connection at once.
    Cut,
    /// Resets every connection at once, like a peer that has forgotten it.
    Reset,
    /// Keeps every connection but forwards nothing, like a firewall that drops packets.
    Stalled,
}

/// A TCP link to a server. A stalled connection stays dead, as behind a firewall that has forgotten
/// it; the peers must open a new one.
pub(crate) struct Link {
    /// `host:port` to connect to.
    pub(crate) address: String,
    passing: watch::Sender<Passing>,
    _carrying: JoinSet<()>,
}

impl Link {
    /// To a server at `host:port`.
    pub(crate) async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (passing, seen) = watch::channel(Passing::Open);
        let mut carrying = JoinSet::new();
        carrying.spawn(carry_all(listener, server.to_owned(), seen));
        Self { address, passing, _carrying: carrying }
    }

    pub(crate) fn set(&self, passing: Passing) {
        self.passing.send_replace(passing);
    }
}

async fn carry_all(listener: TcpListener, server: String, passing: watch::Receiver<Passing>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        connections.spawn(carry(near, server.clone(), passing.clone()));
    }
}

async fn carry(mut near: TcpStream, server: String, mut passing: watch::Receiver<Passing>) {
    let mut far = None;
    if *passing.borrow_and_update() == Passing::Open {
        let carry = async {
            let far = far.insert(TcpStream::connect(server).await?);
            copy_bidirectional(&mut near, far).await
        };
        tokio::select! {
            _ended = carry => return,
            _changed = passing.changed() => {}
        }
    }
    let ends = |passing: &Passing| matches!(passing, Passing::Cut | Passing::Reset);
    if passing.wait_for(ends).await.is_ok_and(|passing| *passing == Passing::Reset) {
        for peer in [Some(near), far].into_iter().flatten() {
            peer.set_zero_linger().expect("it is a TCP connection");
        }
    }
}
