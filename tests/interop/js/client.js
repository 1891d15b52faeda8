// grpc.testing.TestService by @grpc/grpc-js, unmodified: each kind of call, metadata, statuses, a deadline,
// a cancellation and compression. Prints one line a check; fails on the first that is wrong.
// node client.js PORT INTEROP_PROTO

const assert = require("node:assert");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [port, proto] = process.argv.slice(2);
const { testing } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true })).grpc;
const client = new testing.TestService(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
const gzip = new testing.TestService(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
  "grpc.default_compression_algorithm": 2,
});
const zeros = (size) => ({ body: Buffer.alloc(size) });

const unary = (stub, request, metadata = new grpc.Metadata(), options = {}) =>
  new Promise((resolve) => {
    const seen = {};
    const call = stub.UnaryCall(request, metadata, options, (error, answer) => Object.assign(seen, { error, answer }));
    call.on("metadata", (initial) => (seen.initial = initial));
    call.on("status", (status) => setImmediate(() => resolve({ ...seen, status })));
  });

const collect = (call) =>
  new Promise((resolve) => {
    const sizes = [];
    call.on("data", (answer) => sizes.push(answer.payload.body.length));
    call.on("error", (error) => resolve({ sizes, code: error.code }));
    call.on("end", () => resolve({ sizes, code: 0 }));
  });

const checks = {
  async unary() {
    const { answer } = await unary(client, { response_size: 314159, payload: zeros(271828) });
    assert.equal(answer.payload.body.length, 314159);
  },
  async metadata() {
    const metadata = new grpc.Metadata();
    metadata.set("x-grpc-test-echo-initial", "value");
    metadata.set("x-grpc-test-echo-trailing-bin", Buffer.from("ababab", "hex"));
    const { initial, status } = await unary(client, { response_size: 1 }, metadata);
    assert.deepEqual(initial.get("x-grpc-test-echo-initial"), ["value"]);
    assert.equal(status.metadata.get("x-grpc-test-echo-trailing-bin")[0].toString("hex"), "ababab");
  },
  async status() {
    const { error } = await unary(client, { response_status: { code: 2, message: "\t☺ 😈\n" } });
    assert.deepEqual([error.code, error.details], [2, "\t☺ 😈\n"]);
  },
  async compression() {
    const request = { response_size: 9, payload: zeros(1000), expect_compressed: { value: true } };
    assert.equal((await unary(gzip, request)).answer.payload.body.length, 9);
    assert.equal((await unary(client, request)).error.code, grpc.status.INVALID_ARGUMENT);
    const compressed = { response_size: 100000, response_compressed: { value: true } };
    assert.equal((await unary(client, compressed)).answer.payload.body.length, 100000);
  },
  async server_streaming() {
    const sizes = [31415, 9, 2653, 58979];
    const request = { response_parameters: sizes.map((size) => ({ size })) };
    assert.deepEqual(await collect(client.StreamingOutputCall(request)), { sizes, code: 0 });
  },
  async client_streaming() {
    const total = await new Promise((resolve, reject) => {
      const call = client.StreamingInputCall((error, answer) => (error ? reject(error) : resolve(answer)));
      for (const size of [27182, 8, 1828, 45904]) call.write({ payload: zeros(size) });
      call.end();
    });
    assert.equal(total.aggregated_payload_size, 74922);
  },
  async bidirectional() {
    const call = client.FullDuplexCall();
    const done = collect(call);
    const sizes = [31415, 9, 2653];
    call.on("data", () => (sizes.length > left ? ask() : call.end()));
    let left = 0;
    const ask = () => call.write({ response_parameters: [{ size: sizes[left++] }] });
    ask();
    assert.deepEqual(await done, { sizes, code: 0 });
  },
  async deadline() {
    const call = client.FullDuplexCall(new grpc.Metadata(), { deadline: Date.now() + 50 });
    assert.equal((await collect(call)).code, grpc.status.DEADLINE_EXCEEDED);
  },
  async cancellation() {
    const call = client.FullDuplexCall();
    const done = collect(call);
    call.on("data", () => call.cancel());
    call.write({ response_parameters: [{ size: 5 }] });
    assert.deepEqual(await done, { sizes: [5], code: grpc.status.CANCELLED });
  },
};

(async () => {
  for (const [name, check] of Object.entries(checks)) {
    await check();
    console.log(name);
  }
  client.close();
  gzip.close();
})();
