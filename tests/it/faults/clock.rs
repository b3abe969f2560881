//! A wall clock that jumps.

use std::sync::Arc;

use parking_lot::Mutex;
use poem::{
    EndpointExt, Response, Route, Server, handler,
    listener::{Acceptor, Listener, TcpListener},
    web::Data,
};
use serde_json::json;
use tokio::sync::Notify;

use crate::support::{Setup, eventually, faketime::Clock};

/// The service that workflows call, with the inputs it received.
#[derive(Clone, Default)]
struct Remote {
    inputs: Arc<Mutex<Vec<String>>>,
    /// `"slow"` is answered once this is set.
    answers: Arc<Notify>,
}

#[handler]
async fn answer_call(body: String, remote: Data<&Remote>) -> Response {
    remote.inputs.lock().push(body.clone());
    if body == "\"slow\"" {
        remote.answers.notified().await;
    }
    Response::builder().content_type("application/json").body(body)
}

impl Remote {
    fn calls(&self, input: &str) -> usize {
        let input = json!(input).to_string();
        self.inputs.lock().iter().filter(|called| **called == input).count()
    }
}

#[tokio::test]
async fn a_clock_that_is_set_repeats_and_delays_no_step_of_the_embedded_executions() {
    let remote = Remote::default();
    let acceptor = TcpListener::bind("127.0.0.1:0").into_acceptor().await.unwrap();
    let address = acceptor.local_addr()[0].as_socket_addr().unwrap().to_owned();
    let app = Route::new().at("/", poem::post(answer_call)).data(remote.clone());
    let serving = Server::new_with_acceptor(acceptor).run(app);
    let test = async {
        for seconds in [4000, -4000] {
            let setup = Setup::new()
                .set("workflows.call.kind", "\"http\"")
                .set("workflows.call.url", &format!("\"http://{address}/\""));
            let clock = Clock::new(setup.path());
            let service = clock.rule(setup).start().await;
            service.healthy().await;
            let before = remote.calls("slow");
            let slow = service.execute(&json!({"workflow": "call", "input": "slow"})).await;
            eventually("its step runs", async || (remote.calls("slow") > before).then_some(()))
                .await;
            clock.jump(seconds);
            service
                .health("the program believes it", |health| {
                    let believed = health["timestamp"].as_str().unwrap();
                    let believed: jiff::Timestamp = believed.parse().unwrap();
                    let ahead = believed.duration_since(jiff::Timestamp::now()).as_secs();
                    (ahead - i64::from(seconds)).abs() < 1000
                })
                .await;
            // A replica that looks for this run would also find the slow one, if its claim had
            // expired.
            let quick = service.execute(&json!({"workflow": "call", "input": "quick"})).await;
            assert_eq!(service.result(&quick).await["result"], "quick");
            assert_eq!(remote.calls("slow"), before + 1, "its step was begun again");
            remote.answers.notify_waiters();
            assert_eq!(service.result(&slow).await["result"], "slow");
        }
    };
    tokio::select! {
        ended = serving => panic!("{ended:?}"),
        () = test => {}
    }
}
