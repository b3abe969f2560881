//! The HTTP API: routes, types, errors, authentication, and the server.

mod auth;
mod body;
mod connections;
mod dead_letters;
mod document;
mod edge;
mod error;
mod events;
mod examples;
mod executions;
mod explain;
mod foreign;
mod health;
mod idempotency;
mod operation;
mod operator;
mod pages;
mod problem;
mod raw;
mod server;
mod sse;
mod status_page;
mod tls;
mod types;
mod unread;

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering},
};

use poem::{
    Endpoint, EndpointExt, IntoEndpoint, Request, Response, endpoint::BoxEndpoint, http::Method,
    middleware::CatchPanic,
};
use poem_openapi::{ContactObject, LicenseObject, OpenApi, OpenApiService};

pub use self::{
    auth::{NewKey, new_key},
    server::{BindError, Bound, serve},
    tls::TlsFileError,
};
use self::{explain::Parameters, operation::Routes, status_page::StatusPage};
use crate::{
    config::Config,
    connection::ConnectionReport,
    manager::{ConnectionManager, Reloader},
    services::{
        dead_letters::DeadLetters,
        events::{Events, relay::Relay, stream::EventStreams},
        executions::Executions,
    },
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// The state that the handlers share.
#[derive(Clone, Debug)]
pub struct State {
    /// Identifies this process among the replicas.
    pub instance: Arc<str>,
    /// The configuration.
    pub config: Arc<Config>,
    /// The connections, for their reports.
    pub manager: ConnectionManager,
    /// Reloads the configuration.
    pub reloader: Arc<Reloader>,
    /// Publishes events.
    pub events: Events,
    /// The outbox, for its report.
    pub relay: Relay,
    /// The accepted work that was refused for good.
    pub dead_letters: DeadLetters,
    /// Streams events to followers.
    pub streams: EventStreams,
    /// Starts and steers executions.
    pub executions: Executions,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Set once the service is stopping.
    pub draining: Draining,
    /// The background tasks, all of which must run.
    pub tasks: Tasks,
}

impl State {
    /// The status of the service, derived from these reports.
    fn status(&self, reports: &[ConnectionReport]) -> crate::health::Status {
        let late = [self.relay.waiting(), self.executions.waiting()]
            .iter()
            .any(|waiting| waiting.late_since.is_some());
        let hopeless = self.tasks.hopeless().is_some();
        crate::health::status(reports, hopeless, self.draining.is_on(), late)
    }

    /// True when the health report shows its details to this caller.
    fn shows_details(&self, caller: &edge::Caller) -> bool {
        self.config.health.details.shown_to(caller.may_read())
    }
}

/// A flag that is set once the service is stopping.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// Makes the service report from now on that it is stopping.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once the service is stopping.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

type Apis =
    (health::Api, events::Api, executions::Api, dead_letters::Api, connections::Api, operator::Api);

/// All routes: the operations of the handlers, and the pages.
static ROUTES: LazyLock<Routes> = LazyLock::new(|| {
    let operations = [
        health::OPERATIONS,
        events::OPERATIONS,
        executions::OPERATIONS,
        dead_letters::OPERATIONS,
        connections::OPERATIONS,
        operator::OPERATIONS,
    ];
    let pages = [status_page::ROOT, pages::DOCS, pages::JSON, pages::YAML];
    Routes::new(Apis::meta(), &operations.concat(), &pages)
});

fn service(state: &State, health: health::Api) -> OpenApiService<Apis, ()> {
    let apis = (
        health,
        events::Api(state.clone()),
        executions::Api(state.clone()),
        dead_letters::Api(state.clone()),
        connections::Api(state.clone()),
        operator::Api(state.clone()),
    );
    OpenApiService::new(apis, "agentarea-api", env!("CARGO_PKG_VERSION"))
        .description(
            "The front door of an AgentArea deployment: publish events, follow them, and run \
             durable executions.",
        )
        .contact(ContactObject::new().name("AgentArea contributors"))
        .license(
            LicenseObject::new("Apache-2.0").url("https://www.apache.org/licenses/LICENSE-2.0"),
        )
}

/// The specification of the enabled features, as YAML. Needs no running connection.
#[must_use]
pub fn specification_yaml(state: &State) -> String {
    let service = service(state, health::Api::new(state.clone()));
    document::yaml(&document::build(&service.spec(), &ROUTES, &state.config.features))
}

/// All routes behind the single middleware.
#[must_use]
pub fn endpoint(state: &State) -> impl Endpoint<Output = Response> + 'static {
    let health = health::Api::new(state.clone());
    let service = service(state, health.clone());
    let document = document::build(&service.spec(), &ROUTES, &state.config.features);
    let pages = pages::Pages::new(&service, &document);
    let routes = Dispatch {
        health,
        status: StatusPage::new(state.clone()),
        docs: pages.docs(),
        json: pages.json(),
        yaml: pages.yaml(),
        service: service.into_endpoint(),
    };
    behind(edge::Edge::new(state, Parameters::of(&document)), routes)
}

/// The routes of the specification, and the pages that are not part of it.
///
/// The middleware has already found the route. A nested route of the framework would look it up
/// twice more, and rewrite the request's address each time.
struct Dispatch<D, J, Y> {
    health: health::Api,
    status: StatusPage,
    docs: D,
    json: J,
    yaml: Y,
    service: BoxEndpoint<'static>,
}

impl<D, J, Y> Endpoint for Dispatch<D, J, Y>
where
    D: Endpoint<Output = Response>,
    J: Endpoint<Output = Response>,
    Y: Endpoint<Output = Response>,
{
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        const ROOT: &str = status_page::ROOT.path;
        const DOCS: &str = pages::DOCS.path;
        const JSON: &str = pages::JSON.path;
        const YAML: &str = pages::YAML.path;
        match request.uri().path() {
            // Load balancers and kubelets poll it constantly. This is the operation of the
            // specification, without the framework's dispatch, which costs more than the answer.
            "/health" if request.method() == Method::GET => self.health.answer_to(&request).await,
            ROOT => self.status.call(request).await,
            DOCS => self.docs.call(request).await,
            JSON => self.json.call(request).await,
            YAML => self.yaml.call(request).await,
            _ => self.service.call(request).await,
        }
    }
}

/// Wraps `routes` in the single middleware; benchmarks compare with other routes behind it.
pub fn behind_edge<E: Endpoint + 'static>(
    state: &State,
    routes: E,
) -> impl Endpoint<Output = Response> + 'static {
    behind(edge::Edge::new(state, Parameters::default()), routes)
}

fn behind<E: Endpoint + 'static>(
    edge: edge::Edge,
    routes: E,
) -> impl Endpoint<Output = Response> + 'static {
    let caught = CatchPanic::new().with_handler(|_cause| error::panicked());
    routes.with(caught).with(edge).map_to_response()
}
