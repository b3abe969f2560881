//! Detects that the broker has lost acknowledged events.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{Claims, Shared};
use crate::{
    backends::database::Lane,
    error::{Error, ErrorKind},
    model::events::Position,
};

/// The interval at which acknowledged events are looked for on the broker while no new ones arrive.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Delivered events that are looked for at once.
const LOOKED_AT_ONCE: i64 = 500;
impl Shared {
    /// Checks that the broker still has the events it acknowledged last, before they are forgotten
    /// for `newer`. If not, all events that it has lost wait for delivery again, and this returns
    /// true.
    pub(super) async fn look_for_loss(
        &self,
        claims: &mut Claims,
        newer: Option<Position>,
    ) -> Result<bool, Error> {
        let lately = claims.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY);
        if newer.is_none() && lately {
            return Ok(false);
        }
        let lost = !self.lost(&claims.places).await?.is_empty();
        if lost {
            self.send_lost_again(claims).await?;
            // The remaining events may be lost as well, before anything new is delivered.
            claims.places = self.database.newest_places(&claims.lanes).await?;
        }
        claims.looked = Some(Instant::now());
        if let Some(newer) = newer {
            claims.places = vec![newer];
        }
        Ok(lost)
    }

    async fn lost(&self, places: &[Position]) -> Result<Vec<Position>, Error> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        self.broker.lost(places).await
    }

    /// Oldest first, so that a process that takes over midway finds them in order. Only in lanes of
    /// this process: other processes look after theirs. The claims are renewed as it goes, because
    /// there may be more events than one lease has time for.
    async fn send_lost_again(&self, claims: &mut Claims) -> Result<(), Error> {
        let (owner, held) = (&*self.owner, claims.lanes.clone());
        let (mut after, mut sent_again) = (0, 0);
        let done = loop {
            if let Err(error) = self.keep_claims(claims, &held).await {
                break Err(error);
            }
            let page = self.database.delivered_places(&held, after, LOOKED_AT_ONCE).await?;
            let Some((newest, _)) = page.last() else { break Ok(()) };
            after = *newest;
            let places: Vec<Position> = page.iter().map(|(_, place)| *place).collect();
            let lost: BTreeSet<Position> = self.lost(&places).await?.into_iter().collect();
            let events: Vec<(i64, Position)> =
                page.into_iter().filter(|(_, place)| lost.contains(place)).collect();
            let events = &events;
            sent_again += self.database.send_again(owner, &held, events).await?;
        };
        if sent_again > 0 {
            tracing::warn!(
                events = sent_again,
                "the broker has lost events that it had acknowledged, they are handed over again"
            );
        }
        self.wait_again(sent_again);
        done
    }

    /// Renews the claims when it is time. Work that was begun for `held` cannot go on with other
    /// lanes: as after every failure, the next round begins by looking for a loss in those.
    async fn keep_claims(&self, claims: &mut Claims, held: &[Lane]) -> Result<(), Error> {
        self.claim(claims).await?;
        if claims.lanes == held {
            return Ok(());
        }
        let message = "the lanes changed while lost events were queued again";
        Err(Error::new(ErrorKind::Conflict, message))
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "postgres")]
    mod with_postgres {
        use std::sync::Arc;

        use async_trait::async_trait;
        use schemars::JsonSchema;
        use serde::{Deserialize, Serialize};
        use serde_json::json;
        use tokio::time::sleep;

        use super::super::{super::Relay, *};
        use crate::{
            backends::{
                database::{self, Acceptance, Admission, Database, NewEvent, Work},
                event_broker::{EventBroker, FAMILY},
                test_server,
            },
            config::{self, BackendConfig, BackendDescriptor, Connection, Pool, Section, Table},
            connection::{Backend, BuildContext, Client, Factory, Managed, Registry, Settings},
            model::events::{Event, Range, StoredEvent},
            tasks::Tasks,
            telemetry::metrics::Metrics,
        };

        /// A broker that loses every event, and takes its time to say so.
        #[derive(Debug)]
        struct Forgetful;

        const ANSWERS_AFTER: Duration = Duration::from_millis(300);

        #[derive(Default, Serialize, Deserialize, JsonSchema)]
        struct NoConfig {}

        impl BackendConfig for NoConfig {
            fn address(&self) -> String {
                "nowhere".to_owned()
            }
        }

        #[async_trait]
        impl Backend for Forgetful {
            async fn probe(&self) -> Result<(), Error> {
                Ok(())
            }

            async fn close(&self) {}
        }

        #[async_trait]
        impl EventBroker for Forgetful {
            async fn publish(&self, events: &[&Event]) -> Result<Vec<Position>, Error> {
                let place = |number| Position { millis: 1, number };
                Ok((0..).zip(events).map(|(number, _)| place(number)).collect())
            }

            async fn lost(&self, places: &[Position]) -> Result<Vec<Position>, Error> {
                sleep(ANSWERS_AFTER).await;
                Ok(places.to_vec())
            }

            async fn range(&self) -> Result<Range, Error> {
                Ok(Range { complete_after: Position::START, newest: Position::START })
            }

            async fn read(&self, _: Position, _: usize) -> Result<Vec<StoredEvent>, Error> {
                Ok(Vec::new())
            }

            async fn wait(
                &self,
                _: Position,
                _: usize,
                _: Duration,
            ) -> Result<Vec<StoredEvent>, Error> {
                std::future::pending().await
            }
        }

        #[async_trait]
        impl Factory<dyn EventBroker> for Forgetful {
            fn descriptor(&self) -> BackendDescriptor {
                BackendDescriptor {
                    family: FAMILY,
                    name: "forgetful",
                    variables: &[],
                    shared: true,
                    example: "",
                    table: Table::of::<NoConfig>(),
                }
            }

            async fn build(
                &self,
                _: &Section,
                _: &BuildContext,
            ) -> Result<Arc<dyn EventBroker>, Error> {
                Ok(Arc::new(Self))
            }
        }

        fn forgetful(metrics: &Metrics, tasks: &Tasks) -> Managed<dyn EventBroker> {
            let registry = Registry::new(FAMILY).register(Forgetful);
            let broker =
                Managed::new(registry, "test".into(), metrics.connection(FAMILY), tasks.clone());
            broker.start(Settings {
                backend: "forgetful".to_owned(),
                section: Section(json!({})),
                ..Settings::from(&Connection::database())
            });
            broker
        }

        fn new_event(subject: usize) -> NewEvent {
            let event = Event::new("t", Some(subject.to_string()), None);
            let fingerprint = event.fingerprint();
            NewEvent { event, fingerprint }
        }

        async fn store(database: &Client<dyn Database>, events: Vec<NewEvent>) {
            let admission = Admission { work: Work::Events(events), key: None };
            let accepted = database.accept(&[&admission]).await.expect("the database answers");
            assert_eq!(accepted, [Acceptance::Stored]);
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn lanes_stay_claimed_while_more_is_delivered_again_than_one_lease_has_time_for() {
            let server = test_server::PostgresDatabase::create().await;
            let (metrics, tasks) = (Metrics::new("0", "0"), Tasks::default());
            let table = json!({"url": server.url});
            let managed = database::managed("postgres", table, Pool::default(), &metrics, &tasks);
            let broker = forgetful(&metrics, &tasks);
            let database = managed.client();
            let lease = Duration::from_secs(1);
            let relay = Relay::new(
                "one".into(),
                database.clone(),
                broker.client(),
                config::Outbox { lease, ..config::Outbox::default() },
                Arc::clone(&metrics),
            );
            // The other process has its share from the start.
            let other = async || database.claim_lanes("other", lease).await.unwrap().len();
            other().await;
            let mut claims = Claims::default();
            relay.0.claim(&mut claims).await.unwrap();
            let theirs = other().await;
            relay.0.claim(&mut Claims::default()).await.unwrap();
            claims = Claims::default();
            relay.0.claim(&mut claims).await.unwrap();
            let mine = claims.lanes.len();
            assert_eq!(mine + theirs, 16);

            let (mut stored, mut delivered) = (0, 0);
            while delivered < 4 * 500 + 1 {
                store(&database, (stored..stored + 500).map(new_event).collect()).await;
                stored += 500;
                let waiting = database.pending_events(&claims.lanes, 1000, i64::MAX).await.unwrap();
                let waiting: Vec<_> = waiting.readable.iter().collect();
                let places = relay.0.publish(&waiting).await.unwrap();
                delivered += relay.0.mark(&claims.lanes, &waiting, &places).await.unwrap();
                other().await;
                relay.0.claim(&mut claims).await.unwrap();
            }
            claims.places = database.newest_places(&claims.lanes).await.unwrap();
            let begin = Instant::now();
            let others = async {
                loop {
                    assert_eq!(other().await, theirs, "the claims of the first have expired");
                    sleep(lease / 10).await;
                }
            };
            let looked = tokio::select! {
                looked = relay.0.look_for_loss(&mut claims, None) => looked,
                never = others => never,
            };
            assert!(looked.unwrap());
            assert!(begin.elapsed() > lease, "it took no longer than a lease");
            let left = database.delivered_places(&claims.lanes, 0, 10).await.unwrap();
            assert_eq!((left.len(), claims.lanes.len()), (0, mine), "all wait for delivery again");

            // Whoever lost the lanes stops.
            let waiting = database.pending_events(&claims.lanes, 1000, i64::MAX).await.unwrap();
            let waiting: Vec<_> = waiting.readable.iter().collect();
            let places = relay.0.publish(&waiting).await.unwrap();
            relay.0.mark(&claims.lanes, &waiting, &places).await.unwrap();
            claims.places = database.newest_places(&claims.lanes).await.unwrap();
            claims.looked = None;
            database.release_lanes("one").await.unwrap();
            database.claim_lanes("third", lease * 60).await.unwrap();
            claims.made = None;
            let error = relay.0.look_for_loss(&mut claims, None).await.unwrap_err();
            assert!(error.message().contains("the lanes changed"), "{error}");
            broker.close().await;
            managed.close().await;
            server.drop().await;
        }
    }
}
