//! The HTTP API: routes, types, errors, doors, and the server that carries them.

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
mod operator;
mod pages;
mod problem;
mod raw;
mod routes;
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
use self::{explain::Parameters, routes::Routes, status_page::StatusPage};
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

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct State {
    /// Identifies this process among the replicas.
    pub instance: Arc<str>,
    /// The configuration.
    pub config: Arc<Config>,
    /// The connections, for their reports.
    pub manager: ConnectionManager,
    /// Reads the configuration again.
    pub reloader: Arc<Reloader>,
    /// Publishing.
    pub events: Events,
    /// The outbox, for its report.
    pub relay: Relay,
    /// What the broker refused.
    pub dead_letters: DeadLetters,
    /// Following.
    pub streams: EventStreams,
    /// Executions.
    pub executions: Executions,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Set once the service is stopping.
    pub draining: Draining,
    /// The tasks, of which none may be missing.
    pub tasks: Tasks,
}

impl State {
    /// The status of the whole, by these reports.
    fn status(&self, reports: &[ConnectionReport]) -> crate::health::Status {
        let late = self.relay.is_late() || self.executions.are_late();
        let hopeless = self.tasks.hopeless().is_some();
        crate::health::status(reports, hopeless, self.draining.is_on(), late)
    }

    /// Whether this caller sees the details of the health report.
    fn shows_details(&self, caller: &edge::Caller) -> bool {
        self.config.health.details.shown_to(caller.may_read())
    }
}

/// Whether the service is stopping.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// From now on the service reports that it is stopping.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it does.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

type Apis =
    (health::Api, events::Api, executions::Api, dead_letters::Api, connections::Api, operator::Api);

/// All routes: the operations of the handlers, and pages.
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

/// The specification of the features that are on, as YAML. Needs no running connection.
#[must_use]
pub fn specification_yaml(state: &State) -> String {
    let service = service(state, health::Api::new(state.clone()));
    document::yaml(&document::build(&service.spec(), &ROUTES, &state.config.features))
}

/// All routes behind the one middleware.
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

/// The routes of the specification, and those that have no place in it.
///
/// The middleware has found the route already. A nested route of the framework would find it twice
/// more, and write the request's address anew each time.
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
            // Load balancers and kubelets ask for it all day: the operation of the specification,
            // without the framework's way to it, which costs more than the answer.
            "/health" if request.method() == Method::GET => self.health.answer_to(&request).await,
            ROOT => self.status.call(request).await,
            DOCS => self.docs.call(request).await,
            JSON => self.json.call(request).await,
            YAML => self.yaml.call(request).await,
            _ => self.service.call(request).await,
        }
    }
}

/// Puts the one middleware around `routes`; benchmarks compare with other routes behind it.
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
