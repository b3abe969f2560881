//! The distance to the servers. `TEST_RTT=2ms` puts every server so far away, for the program and
//! for the backends under test.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{LazyLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use regex::{Captures, Regex};

/// Bytes that one read takes.
const CHUNK: usize = 64 << 10;

/// The links by their distance and the address of the server. They serve all tests of a program.
static LINKS: Mutex<BTreeMap<(Duration, String), String>> = Mutex::new(BTreeMap::new());

static ADDRESS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b(127\.0\.0\.1|localhost):\d+").expect("a pattern"));

/// The distance of all servers.
#[expect(clippy::disallowed_methods, reason = "tests are told how far away the servers are")]
pub(crate) fn rtt() -> Duration {
    let Ok(text) = std::env::var("TEST_RTT") else { return Duration::ZERO };
    let millis = text.strip_suffix("ms").and_then(|millis| millis.parse().ok());
    let micros = text.strip_suffix("us").and_then(|micros| micros.parse().ok());
    let rtt = millis.map(Duration::from_millis).or(micros.map(Duration::from_micros));
    rtt.unwrap_or_else(|| panic!("TEST_RTT={text} is not like 2ms or 600us"))
}

/// The size of pools that a distance is tried with.
pub(crate) fn small_pool() -> Option<usize> {
    (!rtt().is_zero()).then_some(4)
}

/// The text, such as a URL, with all servers in it so far away.
pub(crate) fn away(text: &str, rtt: Duration) -> String {
    if rtt.is_zero() {
        return text.to_owned();
    }
    ADDRESS.replace_all(text, |found: &Captures<'_>| link(&found[0], rtt)).into_owned()
}

fn link(server: &str, rtt: Duration) -> String {
    let mut links = LINKS.lock();
    let name = (rtt, server.to_owned());
    if let Some(address) = links.get(&name) {
        return address.clone();
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let server = server.to_owned();
    // Threads, because the timers of our runtime are no finer than a millisecond.
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            if let Ok(far) = TcpStream::connect(&server) {
                carry(&near, &far, rtt);
            }
        }
    });
    links.insert(name, address.clone());
    address
}

/// Carries the data of a connection; one way takes all of the time.
fn carry(near: &TcpStream, far: &TcpStream, rtt: Duration) {
    for (from, to, by) in [(near, far, rtt), (far, near, Duration::ZERO)] {
        let _immediate = to.set_nodelay(true);
        let copy = |stream: &TcpStream| stream.try_clone().expect("enough descriptors");
        let (from, to) = (copy(from), copy(to));
        let (sender, chunks) = mpsc::channel();
        thread::spawn(move || receive(from, by, &sender));
        thread::spawn(move || send(to, &chunks));
    }
}

fn receive(mut from: TcpStream, by: Duration, chunks: &mpsc::Sender<(Instant, Vec<u8>)>) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let size = from.read(&mut chunk).unwrap_or(0);
        chunk.truncate(size);
        if size == 0 || chunks.send((Instant::now() + by, chunk)).is_err() {
            return;
        }
    }
}

/// Keeps each chunk until it is due, while others follow.
fn send(mut to: TcpStream, chunks: &mpsc::Receiver<(Instant, Vec<u8>)>) {
    for (due, chunk) in chunks {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&chunk).is_err() {
            break;
        }
    }
    let _already_closed = to.shutdown(Shutdown::Both);
}
