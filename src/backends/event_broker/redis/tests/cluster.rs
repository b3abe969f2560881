//! `mode = "cluster"`: three primaries that share the slots, and a replica of the stream's primary.

use super::*;

const STREAM: &str = "agentarea:events";
const THIRDS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

struct Cluster {
    /// The nodes in the order of their slots.
    nodes: Vec<Server>,
    slot: u16,
}

impl Cluster {
    async fn start() -> Self {
        let mut nodes = Vec::new();
        for (epoch, (first, last)) in (1..).zip(THIRDS) {
            let node = node().await;
            // While nodes resolve equal epochs among themselves, a moved slot may move back.
            run(&node.url(), &format!("CLUSTER SET-CONFIG-EPOCH {epoch}")).await;
            run(&node.url(), &format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
            nodes.push(node);
        }
        for node in &nodes[1..] {
            meet(&nodes[0], node).await;
        }
        let slot = ask(&nodes[0], &format!("CLUSTER KEYSLOT {STREAM}")).await.parse().unwrap();
        let cluster = Self { nodes, slot };
        for node in &cluster.nodes {
            cluster.complete(node, 3).await;
        }
        cluster
    }

    async fn complete(&self, node: &Server, nodes: usize) {
        until("the cluster works", async || {
            let state = ask(node, "CLUSTER INFO").await;
            state.contains("cluster_state:ok")
                && state.contains(&format!("cluster_known_nodes:{nodes}"))
        })
        .await;
    }

    fn owner(&self) -> usize {
        THIRDS.iter().position(|(_, last)| self.slot <= *last).unwrap()
    }

    /// Returns a configuration that names the owner of the stream last.
    fn section(&self) -> Value {
        let owner = self.owner();
        let (owner, others) = (&self.nodes[owner], &self.nodes[(owner + 1) % 3]);
        let down = format!("127.0.0.1:{}", free_port());
        json!({
            "url": others.url(), "nodes": [down, format!("127.0.0.1:{}", owner.port)],
            "mode": "cluster", "stream": STREAM,
        })
    }

    /// Returns a configuration that names only a node that does not own the stream.
    fn detour(&self) -> Value {
        let elsewhere = &self.nodes[(self.owner() + 1) % 3];
        json!({"url": elsewhere.url(), "mode": "cluster", "stream": STREAM})
    }
}

async fn node() -> Server {
    let bus = free_port().to_string();
    let arguments = [
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-node-timeout",
        "1000",
        "--repl-diskless-sync-delay",
        "0",
    ];
    Server::start_with(&arguments).await
}

async fn meet(known: &Server, new: &Server) {
    let bus = ask(known, "CONFIG GET cluster-port").await;
    let bus = bus.split_whitespace().last().unwrap();
    run(&new.url(), &format!("CLUSTER MEET 127.0.0.1 {} {bus}", known.port)).await;
}

async fn id(node: &Server) -> String {
    ask(node, "CLUSTER MYID").await
}

/// Returns the replication offset of a node: `master` for its own writes, `slave` for copied ones.
async fn offset(node: &Server, of: &str) -> u64 {
    let replication = ask(node, "INFO replication").await;
    let name = format!("{of}_repl_offset:");
    let value = replication.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
    value.unwrap_or(0)
}

#[tokio::test]
async fn the_contract_holds_in_a_cluster() {
    let cluster = Cluster::start().await;
    contract::suite(build(cluster.section()).await.unwrap()).await;
    let mut with_envelope = cluster.detour();
    with_envelope["wire"] = json!("agentarea");
    contract::suite(build(with_envelope).await.unwrap()).await;
}

#[tokio::test]
async fn a_node_of_a_cluster_is_no_standalone_server() {
    let cluster = Cluster::start().await;
    let owner = &cluster.nodes[cluster.owner()];
    let error = failure(json!({"url": owner.url(), "stream": STREAM})).await;
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    assert!(error.message().contains("mode"), "{error}");
}

#[tokio::test]
async fn a_slot_that_moves_is_followed_and_loses_nothing() {
    let cluster = Cluster::start().await;
    let broker = build(cluster.detour()).await.unwrap();
    let (done, stop) = (AtomicUsize::new(0), CancellationToken::new());
    let moving = async {
        until("events are published", async || done.load(Ordering::Relaxed) > 20).await;
        let (from, to) = (cluster.owner(), (cluster.owner() + 1) % 3);
        move_slot(cluster.slot, &cluster.nodes[from], &cluster.nodes[to]).await;
        let before = done.load(Ordering::Relaxed);
        until("calls go on", async || done.load(Ordering::Relaxed) > before + 20).await;
        probed_again(&*broker).await;
        stop.cancel();
        &cluster.nodes[to]
    };
    let work = work_until(&*broker, &done, &stop);
    let (Worked { published, errors }, owner) = tokio::join!(work, moving);
    let for_good = errors.iter().find(|error| error.retry() == RetryClass::Never);
    assert!(for_good.is_none(), "{for_good:?}");
    let stored = entries(owner).await;
    assert!(stored >= published, "{stored} of {published} are stored");
}

async fn move_slot(slot: u16, from: &Server, to: &Server) {
    let (old, new) = (id(from).await, id(to).await);
    run(&to.url(), &format!("CLUSTER SETSLOT {slot} IMPORTING {old}")).await;
    run(&from.url(), &format!("CLUSTER SETSLOT {slot} MIGRATING {new}")).await;
    run(&from.url(), &format!("MIGRATE 127.0.0.1 {} {STREAM} 0 5000", to.port)).await;
    for node in [to, from] {
        run(&node.url(), &format!("CLUSTER SETSLOT {slot} NODE {new}")).await;
    }
}

#[tokio::test]
async fn a_replica_that_takes_over_is_followed() {
    let mut cluster = Cluster::start().await;
    let replica = node().await;
    meet(&cluster.nodes[0], &replica).await;
    cluster.complete(&replica, 4).await;
    let broker = build(cluster.detour()).await.unwrap();
    let owner = cluster.nodes.remove(cluster.owner());
    run(&replica.url(), &format!("CLUSTER REPLICATE {}", id(&owner).await)).await;
    broker.publish(&[&event(1)]).await.unwrap();
    let written = broker.range().await.unwrap().newest;
    until("the replica has the event", async || {
        let behind = offset(&replica, "slave").await < offset(&owner, "master").await;
        !behind && ask(&replica, "INFO replication").await.contains("master_link_status:up")
    })
    .await;
    drop(owner);

    goes_on_at(&replica, &*broker, written).await;
}
