import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

import { decode, encode, rows } from "./tensors.mjs";

export const { status } = grpc;

// A published package carries its own copy of the contracts; in the repository they lie beside the clients.
const PROTOS = ["./protos", "../../protos"].map((path) => fileURLToPath(new URL(path, import.meta.url))).find(existsSync);
const FILES = ["hone/inference/v1/inference.proto", "hone/optimization/v1/jobs.proto"];
const { hone } = grpc.loadPackageDefinition(
  protoLoader.loadSync(FILES, { includeDirs: [PROTOS], longs: Number, enums: String, defaults: true, oneofs: true }),
);

const MAX_MESSAGE_BYTES = 64 * 2 ** 20;
const CALL_TIMEOUT_MS = 30_000;
const JOB_TIMEOUT_MS = 6 * 3_600_000;
const RESUME_DELAY_MS = 500;
const ENDED = new Set(["JOB_STATE_SUCCEEDED", "JOB_STATE_REJECTED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"]);
// A server that stops ends its streams with either; nobody on this side cancels one that is still read.
const BROKEN_OFF = new Set([status.UNAVAILABLE, status.CANCELLED]);

// Calls that may be sent twice, since they change nothing. The others are sent once.
const SAFE = {
  "hone.inference.v1.InferenceService": ["Embed", "Classify", "Predict", "ListModels"],
  "hone.optimization.v1.JobService": ["GetJob"],
};
const SERVICE_CONFIG = {
  methodConfig: [
    {
      name: Object.entries(SAFE).flatMap(([service, methods]) => methods.map((method) => ({ service, method }))),
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};
const CHANNEL_OPTIONS = {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
};

/**
 * @typedef {import("./tensors.mjs").Tensor} Tensor
 *
 * @typedef {object} CallOptions
 * @property {number} [timeoutMs]  Deadline of the call, its retries included; the client's own by default.
 * @property {boolean} [truncate]  Cut texts that are too long for the model, which are refused otherwise.
 * @property {boolean} [bypassCache]  Neither read nor write remembered answers.
 * @property {number} [priority]  0 to 9; higher runs earlier.
 *
 * @typedef {object} Served  Where an answer came from and where its time went, in nanoseconds.
 * @property {string} model
 * @property {number} version
 * @property {string} variant
 * @property {number} cachedRows
 * @property {number} tokens
 * @property {number} batchRows
 * @property {number} queueNs
 * @property {number} tokenizationNs
 * @property {number} computeNs
 * @property {string} replica
 */

/**
 * Opens a client; nothing is sent before the first call.
 *
 * @param {string | {inference: string, optimization: string}} address  The gateway's `host:port`, or each service's own.
 * @param {{timeoutMs?: number}} [options]  Deadline of calls that bring none.
 * @returns {Client}
 */
export function connect(address, { timeoutMs = CALL_TIMEOUT_MS } = {}) {
  const { inference, optimization } = typeof address === "string" ? { inference: address, optimization: address } : address;
  return new Client(
    new hone.inference.v1.InferenceService(inference, grpc.credentials.createInsecure(), CHANNEL_OPTIONS),
    new hone.optimization.v1.JobService(optimization, grpc.credentials.createInsecure(), CHANNEL_OPTIONS),
    timeoutMs,
  );
}

/** Made by `connect`. A call that fails rejects with gRPC's ServiceError: its `code` is one of `status`. */
export class Client {
  #inference;
  #jobs;
  #timeoutMs;

  constructor(inference, jobs, timeoutMs) {
    this.#inference = inference;
    this.#jobs = jobs;
    this.#timeoutMs = timeoutMs;
  }

  /**
   * @param {string} model  A reference: `minilm`, `minilm@3`, `minilm:canary`.
   * @param {string[]} texts
   * @param {CallOptions} [options]
   * @returns {Promise<{vectors: Float32Array[], served: Served}>} one vector per text, in order
   */
  async embed(model, texts, options = {}) {
    const { embeddings, served } = await this.#call(this.#inference, "Embed", { model, texts, options }, options);
    return { vectors: rows(decode(embeddings)), served };
  }

  /**
   * @param {string} model
   * @param {string[]} texts
   * @param {CallOptions & {topK?: number}} [options]  `topK`: labels per text; all by default.
   * @returns {Promise<{labels: {label: string, score: number}[][], served: Served}>} per text, the most probable first
   */
  async classify(model, texts, options = {}) {
    const request = { model, texts, options, topK: options.topK };
    const { classifications, served } = await this.#call(this.#inference, "Classify", request, options);
    return { labels: classifications.map(({ labels }) => labels), served };
  }

  /**
   * @param {string} model
   * @param {Record<string, Tensor>} inputs
   * @param {CallOptions & {outputs?: string[]}} [options]  `outputs`: names of those wanted; all by default.
   * @returns {Promise<{outputs: Record<string, Tensor>, served: Served}>}
   */
  async predict(model, inputs, options = {}) {
    const named = Object.entries(inputs).map(([name, tensor]) => ({ name, tensor: encode(tensor) }));
    const request = { model, inputs: named, outputs: options.outputs, options };
    const { outputs, served } = await this.#call(this.#inference, "Predict", request, options);
    return { outputs: Object.fromEntries(outputs.map(({ name, tensor }) => [name, decode(tensor)])), served };
  }

  /**
   * @param {{timeoutMs?: number}} [options]
   * @returns {Promise<{name: string, version: number, state: string, reason: string, channels: string[], backend: string,
   *   sizeBytes: number}[]>} the versions that the replica which answered knows
   */
  async listModels(options = {}) {
    return (await this.#call(this.#inference, "ListModels", {}, options)).models;
  }

  /**
   * Yields a job's events until it has ended, those that happened before the call too. A stream that breaks off is taken up
   * again after the last event that came.
   *
   * @param {string} id
   * @param {{timeoutMs?: number, afterSequence?: number}} [options]  `timeoutMs`: deadline of the whole watch, 6 h by default.
   * @returns {AsyncGenerator<{sequence: number, state: string, stage: string, fraction: number, message: string}>}
   */
  async *watchJob(id, { timeoutMs = JOB_TIMEOUT_MS, afterSequence = 0 } = {}) {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const stream = this.#jobs.WatchJob({ id, afterSequence }, { deadline });
      try {
        for await (const { event } of stream) {
          afterSequence = event.sequence;
          yield event;
        }
        return;
      } catch (error) {
        if (!BROKEN_OFF.has(error.code) || Date.now() + RESUME_DELAY_MS >= deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, RESUME_DELAY_MS));
      } finally {
        stream.on("error", () => {}); // a caller that stopped reading is not told of its own cancellation
        stream.cancel();
      }
    }
  }

  /**
   * Waits until a job has ended, well or not: read `state`, `report` and `failure` off the answer.
   *
   * @param {string} id
   * @param {{timeoutMs?: number}} [options]
   * @returns {Promise<object>} the job, as in jobs.proto with fields in camel case
   */
  async waitForJob(id, options = {}) {
    for await (const { state } of this.watchJob(id, options)) if (ENDED.has(state)) break;
    return (await this.#call(this.#jobs, "GetJob", { id }, {})).job;
  }

  /** Closes the connections; calls that run are cancelled. */
  close() {
    this.#inference.close();
    this.#jobs.close();
  }

  #call(service, method, request, { timeoutMs = this.#timeoutMs }) {
    const deadline = Date.now() + timeoutMs;
    return new Promise((resolve, reject) => {
      service[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
    });
  }
}
