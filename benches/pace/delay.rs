//! A TCP proxy that delays what it forwards, like a long line.
//!
//! Threads instead of tokio: its timer counts whole milliseconds, and the shortest delay measured
//! here is shorter. Bandwidth is not limited, and the order of the bytes is kept.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const CHUNK: usize = 64 * 1024;

/// The proxy; without it, no new connections are made.
pub(crate) struct DelayingProxy {
    /// `host:port` to connect to.
    pub(crate) address: String,
    ended: Arc<AtomicBool>,
}

impl DelayingProxy {
    /// To a server at `host:port`, later by half of the round trip in each direction.
    pub(crate) fn to(server: String, round_trip: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let ended = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&ended);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if ending.load(Ordering::Relaxed) {
                    return;
                }
                connect(near, &server, round_trip / 2);
            }
        });
        Self { address, ended }
    }
}

impl Drop for DelayingProxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits for connections.
        let _woken = TcpStream::connect(&self.address).is_ok();
    }
}

fn connect(near: TcpStream, server: &str, delay: Duration) {
    // Without a server, the client sees its connection close.
    let Ok(far) = TcpStream::connect(server) else { return };
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("it is a TCP connection");
    }
    let again = |stream: &TcpStream| stream.try_clone().expect("there are file descriptors");
    carry(again(&near), again(&far), delay);
    carry(far, near, delay);
}

/// Forwards one direction. Reading never waits for writing, so that all that is on its way at once
/// has the same delay.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (on_its_way, arriving) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let chunk = (Instant::now() + delay, buffer[..length].to_vec());
            if on_its_way.send(chunk).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in arriving {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _already_closed = to.shutdown(Shutdown::Both).is_err();
    });
}
