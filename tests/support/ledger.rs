//! Records the promises made to clients, and checks that they are kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Events, Service, cloud_event, eventually, http_client};

/// All events of clients in the stream, then new ones.
pub(crate) async fn from_the_beginning(service: &Service) -> Events {
    let mut events = service.follow("?type=t", Some("0-0")).await;
    let gap = events.next().await;
    assert_eq!((gap.name.as_deref(), &gap.data["resumes_after"]), (Some("gap"), &json!("0-0")));
    events
}

/// Whether a client may retry.
fn is_retryable(response: &Response) -> bool {
    matches!(response.status().as_u16(), 503 | 504)
}

/// What a client sends at once, from this number of its subject on.
struct Parcel {
    /// More than one are a batch with an idempotency key.
    events: Vec<Value>,
    /// It is sent once more after it was accepted.
    twice: bool,
}

impl Parcel {
    /// Mostly one small event; now and then a deep or a large one, a batch, or a repetition.
    fn new(subject: &str, n: usize) -> Self {
        let size = if n % 20 == 10 { 5 } else { 1 };
        let events = (n..n + size).map(|n| {
            let mut event = cloud_event(subject, n);
            event["data"] = match n % 40 {
                7 => (0..90).fold(json!(n), |data, _| json!([data])),
                27 => json!({"n": n, "text": "x".repeat(64 << 10)}),
                _ => json!(n),
            };
            event
        });
        Self { events: events.collect(), twice: n % 10 == 3 }
    }

    fn request(&self, http: &reqwest::Client, base: &str) -> RequestBuilder {
        let request = http.post(format!("{base}/v1/events"));
        match &*self.events {
            [event] => request
                .header("content-type", "application/cloudevents+json")
                .body(event.to_string()),
            events => request
                .header("content-type", "application/cloudevents-batch+json")
                .header("Idempotency-Key", events[0]["id"].as_str().expect("a text"))
                .body(Value::from(events).to_string()),
        }
    }
}

/// The number of an event, whatever is around it.
fn number(mut data: &Value) -> u64 {
    while let Some(inner) = data.get(0).or_else(|| data.get("n")) {
        data = inner;
    }
    data.as_u64().expect("a number")
}

/// The addresses that clients use, and the promises made to them.
#[derive(Clone)]
pub(crate) struct Ledger {
    bases: Arc<Mutex<Vec<String>>>,
    accepted: Arc<Mutex<BTreeMap<String, usize>>>,
    pub(crate) stop: CancellationToken,
}

impl Ledger {
    pub(crate) fn new(services: &[&Service]) -> Self {
        let ledger = Self {
            bases: Arc::default(),
            accepted: Arc::default(),
            stop: CancellationToken::new(),
        };
        ledger.send_to(services);
        ledger
    }

    pub(crate) fn send_to(&self, services: &[&Service]) {
        *self.bases.lock() = services.iter().map(|service| service.base.clone()).collect();
    }

    /// The address for a client's next request.
    pub(crate) fn base(&self, turn: usize) -> String {
        let bases = self.bases.lock();
        bases[turn % bases.len()].clone()
    }

    /// The number of accepted events of each subject.
    pub(crate) fn accepted(&self) -> BTreeMap<String, usize> {
        self.accepted.lock().clone()
    }

    pub(crate) fn total(&self) -> usize {
        self.accepted.lock().values().sum()
    }

    /// Waits until this many more events were accepted.
    pub(crate) async fn more(&self, events: usize) {
        let wanted = self.total() + events;
        eventually("more events are accepted", async || (self.total() >= wanted).then_some(()))
            .await;
    }

    /// Sends a request until it is accepted, each time to the next base, and repeats what was not
    /// answered. Gives false if the load stopped before.
    pub(crate) async fn until_accepted(
        &self,
        turn: &mut usize,
        request: impl Fn(String) -> RequestBuilder,
    ) -> bool {
        while !self.stop.is_cancelled() {
            let base = self.base(*turn);
            *turn += 1;
            match request(base).send().await {
                Ok(response) if response.status() == 202 => return true,
                Ok(response) => assert!(is_retryable(&response), "{response:?}"),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        false
    }

    /// Sends the events of one subject, each after the previous one was accepted.
    async fn client(self, subject: String) {
        let http = http_client().timeout(Duration::from_secs(5)).build().unwrap();
        let (mut turn, mut n) = (0, 0);
        loop {
            let parcel = Parcel::new(&subject, n);
            for _ in 0..=usize::from(parcel.twice) {
                let request = |base: String| parcel.request(&http, &base);
                if !self.until_accepted(&mut turn, request).await {
                    return;
                }
                self.accepted.lock().insert(subject.clone(), n + parcel.events.len());
            }
            n += parcel.events.len();
        }
    }

    /// Runs `faults` under the load of eight clients.
    pub(crate) async fn under_load(&self, faults: impl Future<Output = ()>) {
        let mut clients = JoinSet::new();
        for n in 0..8 {
            clients.spawn(self.clone().client(format!("s{n}")));
        }
        faults.await;
        self.stop.cancel();
        while let Some(client) = clients.join_next().await {
            client.expect("every answer was 202 or 503");
        }
    }

    /// Reads the whole stream until every accepted event was seen, and checks the order of first
    /// deliveries. Returns the number of repeats.
    pub(crate) async fn check(&self, service: &Service) -> usize {
        let accepted = self.accepted();
        let mut missing: BTreeSet<String> = accepted
            .iter()
            .flat_map(|(subject, count)| (0..*count).map(move |n| format!("{subject}-{n}")))
            .collect();
        assert!(!missing.is_empty());
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        let mut events = from_the_beginning(service).await;
        let mut repeats = 0;
        while !missing.is_empty() {
            let sent = events.try_next().await.unwrap_or_else(|| {
                panic!("the stream ended, {} are missing: {missing:?}", missing.len())
            });
            assert_eq!(sent.name, None, "{:?}", sent.data);
            missing.remove(sent.data["id"].as_str().unwrap());
            let subject = sent.data["subject"].as_str().unwrap().to_owned();
            let n = number(&sent.data["data"]);
            let expected = next.entry(subject.clone()).or_default();
            assert!(n <= *expected, "{subject}-{n} came before {subject}-{expected}");
            repeats += usize::from(n < *expected);
            *expected = (*expected).max(n + 1);
        }
        repeats
    }
}
