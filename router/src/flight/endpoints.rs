//! A result whose whole plan is one leaf: one endpoint for every node with rows of it, all at one snapshot.
//!
//! ```text
//!   SELECT k, v FROM t WHERE v > 3          ShardLocalExec { node 1: shards 0,3   node 2: shards 1,4   node 3: shards 2,5 }
//!     endpoint 1  ticket {shards 0,3, snapshot, plan}   location[0] node 1, the leader    location[1] the node with most followers
//! ```
//!
//! Anything above the leaf (a merge, a sort, a limit) is the router's work, and so is the endpoint. A node that is asked for shards
//! it does not lead any more fetches them from who does (`tessera_meta::leaf`), so every location gives the same rows.
//! Nodes in the router's own process have no address of their own: their endpoints name no location, which means "here".

use super::service::Flight;
use super::statement::{self, Rows};
use arrow_flight::FlightEndpoint;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_meta::leaf;
use tessera_meta::view::ClusterView;
use tessera_proto::flight::caller::{Caller, check_user};
use tessera_proto::flight::rows::{read_schema, schema_bytes};
use tessera_proto::flight::seal::{TICKET_LIFE, expires_in};
use tessera_proto::fragment::{LeafOwner, ShardLocalExec};
use tessera_proto::v1::{self, ExecuteRequest};
use tessera_proto::{NodeId, Result};

/// The owners, if the plan is one leaf and nothing else.
pub(super) fn whole_leaf(physical: &Arc<dyn ExecutionPlan>) -> Option<Vec<LeafOwner>> {
    let mut plan = physical;
    // These change no rows.
    while plan.is::<CoalescePartitionsExec>() || plan.is::<CooperativeExec>() {
        plan = plan.children().first().copied()?;
    }
    let leaf = plan.downcast_ref::<ShardLocalExec>()?;
    Some(leaf.owners().to_vec())
}

impl Flight {
    /// An endpoint per owner.
    pub(super) fn leaf_endpoints(
        &self,
        caller: &Caller,
        owners: Vec<LeafOwner>,
        schema: &SchemaRef,
    ) -> Result<Vec<FlightEndpoint>> {
        let view = self.engine.view();
        let bytes = schema_bytes(schema)?;
        let expires_ms = expires_in(TICKET_LIFE);
        let endpoint = |owner: LeafOwner| {
            let locations = locations(&view, &owner);
            let ticket = v1::LeafTicket {
                user: caller.user.clone(),
                expires_ms,
                request: Some(owner.request),
                schema: bytes.clone(),
            };
            let endpoint = statement::endpoint(self.engine.secret().seal(&ticket), expires_ms)?;
            Ok(locations.into_iter().fold(endpoint, FlightEndpoint::with_location))
        };
        owners.into_iter().map(endpoint).collect()
    }

    /// Redeems a node's ticket here: for nodes of this process, and for clients that cannot reach a node.
    pub(super) async fn leaf_rows(&self, caller: &Caller, sealed: &[u8]) -> Result<Rows> {
        let ticket: v1::LeafTicket = self.engine.secret().open(sealed)?;
        check_user(caller, &ticket.user)?;
        let permit = self.permit()?;
        let schema = read_schema(ticket.schema)?;
        let request = ticket.request.unwrap_or_default();
        let (views, directory) = (self.engine.views(), self.engine.directory().as_ref());
        let rows = leaf::rows(views, directory, None, request, schema.clone()).await;
        Ok(self.send(schema, rows.map_err(crate::error::give_up)?, permit))
    }
}

/// Where a ticket may be redeemed, best first.
fn locations(view: &ClusterView, owner: &LeafOwner) -> Vec<String> {
    let leader = address(view, owner.node);
    let follower = follower(view, owner.node, &owner.request).and_then(|node| address(view, node));
    leader.into_iter().chain(follower).collect()
}

fn address(view: &ClusterView, node: NodeId) -> Option<String> {
    let address = &view.nodes.get(&node)?.address;
    (!address.is_empty()).then(|| format!("grpc+tcp://{address}"))
}

/// The node other than the leader with most in-sync copies of what is read.
fn follower(view: &ClusterView, leader: NodeId, request: &ExecuteRequest) -> Option<NodeId> {
    let references = request.references.iter().filter_map(|r| r.shard);
    let mut copies: BTreeMap<NodeId, usize> = BTreeMap::new();
    for shard in request.shards.iter().copied().chain(references) {
        let config = view.shards.get(&shard.id()).map(|entry| &entry.config);
        let others = config.into_iter().flat_map(|c| &c.in_sync).map(|r| r.node);
        for node in others.filter(|node| *node != leader) {
            *copies.entry(node).or_default() += 1;
        }
    }
    let most = copies
        .into_iter()
        .max_by_key(|(node, count)| (*count, std::cmp::Reverse(*node)));
    most.map(|(node, _)| node)
}
