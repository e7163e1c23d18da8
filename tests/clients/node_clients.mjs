// What one client library of npm can do with a served model; the counterpart of python_clients.py:
//
//     node node_clients.mjs CLIENT ADDRESS KEY MODEL [FEATURE …]
//
// prints a line of JSON, {feature: "works", or what it said instead}. It lies beside its node_modules.

const N_TOKENS = 12;
const SAY = 'Say hi.';
const ASK = 'Where is the ferry? Answer as JSON with the keys city and pier.';
// As in python_clients.py.
const CALL = 'Call get_weather for Paris and 3 days. Write nothing else.';
const WEATHER = {
    type: 'object', required: ['city', 'days'], additionalProperties: false,
    properties: {city: {type: 'string', maxLength: 24}, days: {type: 'integer', minimum: 1, maximum: 7}},
};
const TOOLS = [{type: 'function', function: {name: 'get_weather', description: 'The weather of the next days', parameters: WEATHER}}];
const PLACE = {
    type: 'object', additionalProperties: false, required: ['city', 'pier'],
    properties: {city: {type: 'string', maxLength: 20}, pier: {type: 'integer', minimum: 0, maximum: 99}},
};
const [client, address, key, model, ...wanted] = process.argv.slice(2);
const messages = [{role: 'user', content: SAY}];

// To add a client: a function for each feature, which throws where it does not work and returns something true where it does.
const CLIENTS = {
    'openai-npm': {
        chat: async () => (await complete({messages})).choices[0].message.content,
        stream: async () => {
            const seen = [];
            for await (const chunk of await complete({messages, stream: true})) seen.push(...chunk.choices);
            return seen.length > 2 && ['stop', 'length'].includes(seen.at(-1).finish_reason);
        },
        tools: async () => {
            const call = {messages: [{role: 'user', content: CALL}], tools: TOOLS, tool_choice: 'required', temperature: 0, max_tokens: 100};
            const answer = await complete(call);
            return 'city' in JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments);
        },
        schema: async () => {
            const response_format = {type: 'json_schema', json_schema: {name: 'place', strict: true, schema: PLACE}};
            const answer = await complete({messages: [{role: 'user', content: ASK}], response_format, max_tokens: 100});
            return 'city' in JSON.parse(answer.choices[0].message.content);
        },
    },
    'ai-sdk': {
        chat: async () => {
            const {generateText} = await import('ai');
            return (await generateText({model: await languageModel(), prompt: SAY, maxOutputTokens: N_TOKENS, maxRetries: 0})).text;
        },
        stream: async () => {
            const {streamText} = await import('ai');
            let n = 0;
            const answer = streamText({model: await languageModel(), prompt: SAY, maxOutputTokens: N_TOKENS, maxRetries: 0});
            for await (const _ of answer.textStream) n++;
            return n > 2;
        },
        tools: async () => {
            const {generateText, jsonSchema, tool} = await import('ai');
            const tools = {get_weather: tool({description: 'The weather of the next days', inputSchema: jsonSchema(WEATHER)})};
            const answer = await generateText({model: await languageModel(), prompt: CALL, tools, toolChoice: 'required', temperature: 0, maxOutputTokens: 100, maxRetries: 0});
            return 'city' in answer.toolCalls[0].input;
        },
        schema: async () => {
            const {generateText, jsonSchema, Output} = await import('ai');
            const output = Output.object({schema: jsonSchema(PLACE)});
            const answer = await generateText({model: await languageModel(), prompt: ASK, output, maxOutputTokens: 100, maxRetries: 0});
            return 'city' in answer.output;
        },
    },
    promptfoo: {
        chat: async () => (await evaluated({})).output,
        schema: async () => {
            const response_format = {type: 'json_schema', json_schema: {name: 'place', strict: true, schema: PLACE}};
            const {output} = await evaluated({response_format, max_tokens: 100}, ASK);
            return 'city' in (typeof output === 'string' ? JSON.parse(output) : output);
        },
        tools: async () => {
            const {output} = await evaluated({tools: TOOLS, tool_choice: 'required', temperature: 0, max_tokens: 100}, CALL);
            return JSON.stringify(output).includes('get_weather');
        },
    },
};

async function complete(asked) {
    const {OpenAI} = await import('openai');
    const made = new OpenAI({baseURL: `${address}/v1`, apiKey: key, maxRetries: 0});
    return made.chat.completions.create({model, max_tokens: N_TOKENS, ...asked});
}

async function languageModel() {
    const {createOpenAICompatible} = await import('@ai-sdk/openai-compatible');
    const provider = createOpenAICompatible({name: 'quantyard', baseURL: `${address}/v1`, apiKey: key, supportsStructuredOutputs: true});
    return provider(model);
}

async function evaluated(config, prompt = SAY) {
    const promptfoo = (await import('promptfoo')).default;
    const provider = {id: `openai:chat:${model}`, config: {apiBaseUrl: `${address}/v1`, apiKey: key, max_tokens: N_TOKENS, ...config}};
    const run = await promptfoo.evaluate({prompts: [prompt], providers: [provider], tests: [{vars: {}}], writeLatestResults: false}, {maxConcurrency: 1, cache: false});
    const result = (run.results.results ?? run.results)[0];
    if (result.error) throw new Error(result.error);
    return result.response;
}

const found = {};
for (const [name, check] of Object.entries(CLIENTS[client])) {
    if (wanted.length && !wanted.includes(name)) continue;
    try {
        found[name] = (await check()) ? 'works' : 'it answered otherwise';
    } catch (error) {
        found[name] = `${error.name}: ${String(error.message).split(/\s+/).join(' ').slice(0, 300)}`;
    }
}
process.stdout.write(JSON.stringify(found) + '\n', () => process.exit(0));
