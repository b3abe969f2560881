//! Passwords and URLs that change during calls.

use super::*;

#[tokio::test]
async fn no_call_is_refused_when_a_password_rotates_and_connections_are_killed() {
    let server = Server::start_with(&["--requirepass", "password-0"]).await;
    let file = SecretFile::new("password-0");
    let section = json!({"url": server.url(), "password": file.value()});
    let broker = build(section).await.unwrap();
    let admin = format!("redis://:password-0@127.0.0.1:{}", server.port);
    let admin = Client::open(admin).unwrap();
    // This connection stays logged in.
    let mut admin = admin.get_multiplexed_async_connection().await.unwrap();
    let (done, stop) = (AtomicUsize::new(0), CancellationToken::new());
    let rotation = async {
        for n in 1..=10 {
            file.write(&format!("password-{n}"));
            let mut set = redis::cmd("CONFIG");
            set.arg("SET").arg("requirepass").arg(format!("password-{n}"));
            set.exec_async(&mut admin).await.unwrap();
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL").arg("TYPE").arg("normal");
            kill.exec_async(&mut admin).await.unwrap();
            let (before, begin) = (done.load(Ordering::Relaxed), Instant::now());
            while done.load(Ordering::Relaxed) < before + 50 {
                assert!(begin.elapsed() < Duration::from_secs(30), "calls do not go on");
                sleep(Duration::from_millis(1)).await;
            }
            probed_again(&*broker).await;
        }
        stop.cancel();
    };
    let load = (0..8).map(|_| work_until(&*broker, &done, &stop));
    let (worked, ()) = tokio::join!(futures_util::future::join_all(load), rotation);
    let errors: Vec<_> = worked.into_iter().flat_map(|worked| worked.errors).collect();
    let killed = |error: &Error| error.kind() == ErrorKind::Disconnected;
    assert!(errors.iter().all(killed), "{errors:?}");
}

#[tokio::test]
async fn a_url_file_rotates_as_a_password_file_does() {
    let server = Server::start_with(&["--requirepass", "first"]).await;
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}", server.port);
    let file = SecretFile::new(&url("first"));
    let broker = build(json!({"url": file.value()})).await.unwrap();
    broker.publish(&[&event(1)]).await.unwrap();
    run(&url("first"), "CONFIG SET requirepass second").await;
    file.write(&url("second"));
    // The connection that stays logged in remains in use; a new one needs the new password.
    broker.publish(&[&event(2)]).await.unwrap();
    let read = broker.wait(Position::START, 9, Duration::from_secs(9)).await.unwrap();
    assert_eq!(read.len(), 2);
}
