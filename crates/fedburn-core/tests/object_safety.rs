//! Every trait that crosses crates as an object stays an object: this file compiles or it does not.

use burn_flex::Flex;
use fedburn_core::{
    Client, ClientSampler, ClientTransport, Evaluator, MeanStrategy, Observer, PerClientStrategy, Population,
    ServerTransport, StateStore, Worker,
};

fn is_object<T: ?Sized>() -> usize {
    size_of::<&T>()
}

#[test]
fn traits_are_objects() {
    let sizes = [
        is_object::<dyn Client<Flex>>(),
        is_object::<dyn ClientSampler>(),
        is_object::<dyn ClientTransport<Flex>>(),
        is_object::<dyn Evaluator<Flex>>(),
        is_object::<dyn MeanStrategy<Flex>>(),
        is_object::<dyn Observer>(),
        is_object::<dyn PerClientStrategy<Flex>>(),
        is_object::<dyn Population<Flex>>(),
        is_object::<dyn ServerTransport<Flex>>(),
        is_object::<dyn StateStore>(),
        is_object::<dyn Worker<Flex>>(),
    ];
    assert!(sizes.iter().all(|&size| size == 2 * size_of::<usize>()));
}
