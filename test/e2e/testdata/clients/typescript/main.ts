// Makes, lists and deletes an access key with what openapi-typescript makes of api/openapi.yaml. Prints the token of the deleted key.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

declare const process: { env: { BASE_URL: string; CLIENT_USERNAME: string; CLIENT_PASSWORD: string } };

const { BASE_URL: baseUrl, CLIENT_USERNAME: username, CLIENT_PASSWORD: password } = process.env;
const bearer = (token: string) => createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });

// ok is what a request was answered with; an error ends the program.
async function ok<T>(request: Promise<{ data?: T; error?: components["schemas"]["Error"] }>): Promise<T> {
  const { data, error } = await request;
  if (data === undefined) throw new Error(JSON.stringify(error));
  return data;
}
function check(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

const login = await ok(createClient<paths>({ baseUrl }).POST("/auth/login", { body: { username, password } }));
const agent = bearer(login.token);

const key = await ok(agent.POST("/v1.0/accesskeys", { body: { name: "openapi-typescript", expire: 3600 } }));
check(key.name === "openapi-typescript", `the key's name is ${key.name}`);
const me = await ok(bearer(key.token).GET("/v1.0/me"));
check(me.id === key.id, `the key's caller is ${me.id}`);

let listed = 0;
let page: string | null | undefined;
do {
  const query = page ? { page_size: 1, page_token: page } : { page_size: 1 };
  const list = await ok(agent.GET("/v1.0/accesskeys", { params: { query } }));
  listed += list.result.filter(({ id, tm_create }) => id === key.id && tm_create === key.tm_create).length;
  page = list.next_page_token;
} while (page !== null);
check(listed === 1, `the lists have the key ${listed} times`);

const params = { path: { id: key.id } };
const deleted = await ok(agent.DELETE("/v1.0/accesskeys/{id}", { params }));
check(deleted.tm_delete === deleted.tm_update, `the key was deleted at ${deleted.tm_delete}`);
const again = await agent.DELETE("/v1.0/accesskeys/{id}", { params });
check(again.response.status === 404 && again.error?.error.reason === "ACCESSKEY_NOT_FOUND", JSON.stringify(again.error));

console.log(key.token);
