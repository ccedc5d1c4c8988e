"""A library of skills, and queries that each need one of them.

Rule 1: data only. The search sees `SKILLS`; the benchmark compares with the names in `QUERIES`.
Rule 2: most queries avoid the words of the descriptions on purpose. Each has one right skill, among
similar ones. The last queries use plain words.
"""

from __future__ import annotations

from dataclasses import dataclass

from .skill_tasks import TASKS


@dataclass(frozen=True)
class Entry:
    """One skill: `signature` without the name, `summary` in one line, `body` its code."""

    name: str
    signature: str
    summary: str
    body: str


BODIES = {task.name: "\n".join(task.steps) for task in TASKS}

# Skills of the proof set: signature and summary; their code is the recorded code.
RECORDED = {
    "revenue_by_category": (
        '(region: str = "EMEA", year: str = "2025") -> dict',
        "Revenue of a region in a year by product category, without cancelled orders.",
    ),
    "top_customers": (
        '(country: str = "Norway", count: int = 5) -> list',
        "The customers of a country who spent most, with their totals.",
    ),
    "late_shipments": (
        '(channel: str = "partner", days: int = 9) -> list',
        "Numbers of the orders of a channel that took too many days to ship.",
    ),
    "orders_per_month": (
        '(channel: str = "phone") -> dict',
        "Count the orders of a channel by month.",
    ),
    "to_reorder": (
        '(category: str = "garden", minimum: int = 60, target: int = 100) -> dict',
        "Products low in stock in a category, and how many to order to reach a target.",
    ),
    "loyal_customers": (
        '(segment: str = "business", orders: int = 14) -> list',
        "Customers of a segment with at least so many orders.",
    ),
    "statuses_by_region": (
        "(regions: list) -> dict",
        "Count orders by status for several regions.",
    ),
    "best_sellers": (
        '(category: str = "tools", limit: int = 3) -> list',
        "Return the products of a category that sold most, with the pieces sold.",
    ),
    "average_order_values": (
        '(one: str = "consumer", other: str = "public") -> dict',
        "Compare the average order value of two customer segments.",
    ),
    "orders_to_chase": (
        '(status: str = "pending", minimum: int = 2500) -> list',
        "Put a note on every order of a status above an amount, and return their numbers.",
    ),
    "customers_called": (
        '(word: str = "Marine") -> list',
        "Find customers by part of their name, with mail addresses.",
    ),
    "price_summary": (
        '(category: str = "lighting") -> dict',
        "Minimum, median and maximum price of a product category.",
    ),
    "commits_by_author": (
        '(repo: str, area: str = "api") -> dict',
        "Count commits by author in one area of a repository.",
    ),
    "commits_between": (
        "(repo: str, begin: str, end: str) -> dict",
        "Count commits by month between two dates.",
    ),
    "files_of_author": (
        "(repo: str, author: str, newest: int = 30) -> list",
        "Files that an author touched in the last commits.",
    ),
    "lines_added_by_kind": (
        "(repo: str, newest: int = 25) -> dict",
        "Lines added in the last commits, by kind of commit.",
    ),
    "branches_with": (
        '(repo: str, contains: str = "release-2") -> list',
        "Branches that contain a revision.",
    ),
    "pull_requests": (
        "(repo: str, above: int = 140) -> list",
        "Pull request numbers that commit messages mention.",
    ),
    "latest_commit": (
        "(repo_path: str, author: str) -> dict",
        "Return the newest commit of an author: sha, day and subject.",
    ),
    "weekdays": (
        "(repo: str, newest: int = 50) -> dict",
        "The weekdays on which most commits are made.",
    ),
    "changed_since": (
        '(repo: str, since: str = "release-1", folder: str = "storage/") -> list',
        "Paths in a folder that differ from a revision.",
    ),
    "fix_share": (
        '(repo: str, kind: str = "fix", newest: int = 40) -> dict',
        "Percentage of every author's commits that are of a kind.",
    ),
    "open_items": (
        "(base: str, owner: str) -> dict",
        "Unticked checkboxes of an owner in Markdown notes.",
    ),
    "sales_by_team": (
        '(base: str, month: str = "2025-03") -> dict',
        "Add up a month's sales table by team.",
    ),
    "slow_errors": (
        '(base: str, service: str = "billing", ms: int = 2000) -> list',
        "Errors in a service's log that took longer than a limit.",
    ),
    "best_paid": (
        '(path: str, skill: str = "python", count: int = 4) -> list',
        "Names of the people with a skill who have the highest salaries.",
    ),
    "big_services": (
        "(base: str, minimum: int = 512) -> dict",
        "Total memory of the services whose settings ask for at least so much.",
    ),
    "city_totals": (
        "(folder: str, team: str, first: str, last: str) -> dict",
        "Total sales of a team by city over several months.",
    ),
    "level_report": (
        '(base: str, service: str = "gateway") -> str',
        "Write a report of a log's levels into a file.",
    ),
    "slowest": (
        '(folder: str, level: str = "WARN", count: int = 6) -> list',
        "The slowest log entries of a level over all services.",
    ),
    "team_salaries": (
        "(folder: str, since: int) -> dict",
        "Return the mean salary by team of the people who started in a year or later.",
    ),
    "meeting_times": (
        "(home: str, clock: str, zones: list) -> dict",
        "Convert a time of day to several time zones.",
    ),
    "hours_apart": ("(east: str, west: str) -> float", "Difference of two time zones in hours."),
    "working_hours": (
        "(here: str, there: str, begin: int = 9, end: int = 17) -> list",
        "Hours of the working day that two time zones share.",
    ),
    "who_works_on": (
        '(project: str = "Atlas", relation: str = "leads") -> list',
        "People who have a relation to a project, from memory.",
    ),
    "hours_in_city": (
        '(city: str = "Turku") -> dict',
        "Weekly hours of the people who live in a city, from memory.",
    ),
    "milestones": ("(names: list, project: str) -> list", "Remember milestones of a project."),
    "night_commits": (
        '(repo: str, zone: str = "Asia/Tokyo", newest: int = 15) -> dict',
        "Count commits between midnight and six in a time zone, by author.",
    ),
    "customer_sheet": (
        '(country: str = "Kenya", path: str = "") -> list',
        "Write the customers of a country into a CSV file.",
    ),
    "orders_on_release_days": (
        "(repo: str, kind: str, status: str) -> dict",
        "Count orders of a status on the days of commits of a kind.",
    ),
    "instalments": (
        "(principal: float, months: int, rate: float) -> list",
        "Repayment plan of a loan in equal monthly instalments.",
    ),
}

# Everyday skills, many of which resemble another skill.
OTHERS = (
    Entry(
        "orders_by_region",
        '(year: str = "2025") -> dict',
        "Number of orders in a year for each sales region.",
        "rows = tools.orders.query('SELECT c.region, COUNT(*) AS n FROM orders o JOIN customers c ON c.id = "
        "o.customer_id WHERE o.placed LIKE ? GROUP BY c.region', [year + '%'])\n"
        "return {row.region: row.n for row in rows}",
    ),
    Entry(
        "orders_of_customer",
        "(name: str) -> list",
        "All orders of one customer, the newest first.",
        "return tools.orders.query('SELECT o.id, o.placed, o.status FROM orders o JOIN customers c ON c.id = "
        "o.customer_id WHERE c.name = ? ORDER BY o.placed DESC', [name])",
    ),
    Entry(
        "return_rate",
        '(category: str = "kitchen") -> float',
        "Share of the orders with products of a category that came back.",
        "rows = tools.orders.query('SELECT DISTINCT o.id, o.status FROM orders o JOIN items i ON i.order_id = o.id "
        "JOIN products p ON p.id = i.product_id WHERE p.category = ?', [category])\n"
        "return sum(row.status == 'returned' for row in rows) / len(rows)",
    ),
    Entry(
        "commits_by_file",
        "(repo: str, newest: int = 100) -> dict",
        "How often each file was changed in the last commits.",
        "counts = Counter()\nfor sha in re.findall(r'Commit: (\\w+)', tools.git.git_log(repo, max_count=newest)):\n"
        "    counts.update(re.findall(r'^\\+\\+\\+ b/(\\S+)', tools.git.git_show(repo, sha), re.M))\n"
        "return dict(counts)",
    ),
    Entry(
        "release_notes",
        "(repo: str, since: str) -> str",
        "Markdown list of features and fixes since a revision.",
        "log = tools.git.git_log(repo, max_count=500)\nsubjects = re.findall(r'Message: (.*)', log)\n"
        "return '\\n'.join(f'- {s}' for s in subjects if s.startswith(('feat', 'fix')))",
    ),
    Entry(
        "uncommitted_changes",
        "(repo: str) -> list",
        "Files in the working tree that are modified and not committed.",
        "status = tools.git.git_status(repo)\nreturn re.findall(r'modified:\\s+(\\S+)', status)",
    ),
    Entry(
        "largest_files",
        "(folder: str, count: int = 10) -> list",
        "The biggest files of a folder with their sizes.",
        "text = tools.filesystem.list_directory_with_sizes(folder, sortBy='size').content\n"
        "return re.findall(r'\\[FILE\\] (\\S+)\\s+(.+)', text)[:count]",
    ),
    Entry(
        "duplicate_files",
        "(folder: str) -> list",
        "Groups of files with the same content.",
        "by_hash = defaultdict(list)\nfor path in tools.filesystem.search_files(folder, '**/*').content.splitlines():\n"
        "    text = tools.filesystem.read_text_file(path).content\n"
        "    by_hash[hashlib.sha256(text.encode()).hexdigest()].append(path)\n"
        "return [paths for paths in by_hash.values() if len(paths) > 1]",
    ),
    Entry(
        "csv_to_json",
        "(path: str, target: str) -> int",
        "Convert a CSV file to a JSON array of objects.",
        "rows = list(csv.DictReader(io.StringIO(tools.filesystem.read_text_file(path).content)))\n"
        "tools.filesystem.write_file(target, json.dumps(rows))\nreturn len(rows)",
    ),
    Entry(
        "search_text",
        "(folder: str, pattern: str) -> list",
        "Lines that match a regular expression in the text files of a folder.",
        "hits = []\nfor path in tools.filesystem.search_files(folder, '**/*.txt').content.splitlines():\n"
        "    for n, line in enumerate(tools.filesystem.read_text_file(path).content.splitlines(), 1):\n"
        "        if re.search(pattern, line):\n            hits.append([path, n, line])\nreturn hits",
    ),
    Entry(
        "error_rate",
        "(base: str, service: str) -> float",
        "Share of a service's log lines that are errors.",
        "lines = tools.filesystem.read_text_file(f'{base}/logs/{service}.log').content.splitlines()\n"
        "return sum(' ERROR ' in line for line in lines) / len(lines)",
    ),
    Entry(
        "latency_percentiles",
        "(base: str, service: str, percentiles: list) -> dict",
        "Percentiles of the durations in a service's log.",
        "text = tools.filesystem.read_text_file(f'{base}/logs/{service}.log').content\n"
        "took = sorted(int(ms) for ms in re.findall(r'took (\\d+)ms', text))\n"
        "return {p: took[min(len(took) - 1, len(took) * p // 100)] for p in percentiles}",
    ),
    Entry(
        "headcount_by_city",
        "(path: str) -> dict",
        "Number of employees in each city.",
        "people = json.loads(tools.filesystem.read_text_file(path).content)\n"
        "return dict(Counter(person['city'] for person in people))",
    ),
    Entry(
        "anniversaries",
        "(path: str, month: int) -> list",
        "Employees whose start date has its anniversary in a month.",
        "people = json.loads(tools.filesystem.read_text_file(path).content)\n"
        "return [p['name'] for p in people if int(p['started'][5:7]) == month]",
    ),
    Entry(
        "is_summer_time",
        "(zone: str) -> bool",
        "Whether a time zone has daylight saving time now.",
        "return tools.time.get_current_time(zone).is_dst",
    ),
    Entry(
        "remember_decision",
        "(topic: str, decision: str) -> dict",
        "Add an observation about a decision to the knowledge graph.",
        "tools.memory.create_entities([{'name': topic, 'entityType': 'decision', 'observations': [decision]}])\n"
        "return tools.memory.open_nodes([topic]).entities[0]",
    ),
    Entry(
        "project_budget",
        "(project: str) -> int",
        "Budget of a project in thousands, from its observations.",
        "entity = tools.memory.open_nodes([project]).entities[0]\n"
        "return next(int(o.split()[1].rstrip('k')) for o in entity.observations if o.startswith('budget'))",
    ),
    Entry(
        "compound_interest",
        "(principal: float, rate: float, years: int) -> float",
        "Value of savings after some years with yearly interest.",
        "return round(principal * (1 + rate) ** years, 2)",
    ),
    Entry(
        "moving_average",
        "(values: list, window: int = 7) -> list",
        "Smooth a series of numbers with a sliding mean.",
        "return pd.Series(values).rolling(window).mean().dropna().tolist()",
    ),
    Entry(
        "weather_report",
        "(city: str, days: int = 3) -> list",
        "Forecast of temperature and rain for a city.",
        "place = tools.weather.geocode(city)\n"
        "return tools.weather.forecast(latitude=place.lat, longitude=place.lon, days=days).daily",
    ),
    Entry(
        "open_tickets_by_owner",
        "(project: str) -> dict",
        "Count unresolved tickets of a project by assignee.",
        "issues = tools.tracker.search_issues(project=project, state='open')\n"
        "return dict(Counter(issue.assignee or 'nobody' for issue in issues))",
    ),
)

SKILLS: tuple[Entry, ...] = (
    *(Entry(name, *RECORDED[name], BODIES[name]) for name in RECORDED),
    *OTHERS,
)

QUERIES: tuple[tuple[str, str], ...] = (
    ("which kinds of goods brought in the most money in Asia last year", "revenue_by_category"),
    ("break down 2024 turnover for the Americas into product groups", "revenue_by_category"),
    ("our biggest spenders in Germany", "top_customers"),
    ("who buys the most from us in Japan, the first three", "top_customers"),
    (
        "deliveries that left the warehouse more than ten days after they were ordered",
        "late_shipments",
    ),
    ("slow dispatch: list purchases over the web shop that waited over a week", "late_shipments"),
    ("monthly volume of web orders", "orders_per_month"),
    ("how did the number of orders by telephone develop over time", "orders_per_month"),
    ("what office supplies do we need to buy again", "to_reorder"),
    ("restocking list: everything under 40 pieces, fill up to 120", "to_reorder"),
    ("public bodies that keep coming back, ten orders or more", "loyal_customers"),
    ("frequent buyers among consumers", "loyal_customers"),
    ("paid, shipped, cancelled: give me the split for AMER and EMEA", "statuses_by_region"),
    ("compare order states across sales territories", "statuses_by_region"),
    ("most popular kitchen articles", "best_sellers"),
    ("what garden item goes over the counter most often", "best_sellers"),
    ("do businesses put more in their basket than consumers do?", "average_order_values"),
    ("mean size of an order, companies against private people", "average_order_values"),
    ("flag large unpaid orders so that sales phones them", "orders_to_chase"),
    ("leave a reminder on returned orders worth more than 1000", "orders_to_chase"),
    ("what is the e-mail of that customer with Optics in its name", "customers_called"),
    ("look up a client whose name I only half remember", "customers_called"),
    ("range of prices for garden things", "price_summary"),
    ("what does the typical lamp cost, and the most expensive one", "price_summary"),
    ("number of orders from each part of the world in 2024", "orders_by_region"),
    ("purchase history of Garnet Labs", "orders_of_customer"),
    ("how many lighting purchases are sent back", "return_rate"),
    ("who knows the storage code best, judging from its history", "commits_by_author"),
    ("rank developers by commits to the ui", "commits_by_author"),
    ("development activity per month in the first half of 2025", "commits_between"),
    ("how busy was the repository from January until April", "commits_between"),
    ("what parts of the code has Dana been working in lately", "files_of_author"),
    ("every path Greta changed recently", "files_of_author"),
    ("how much code did bug fixes bring compared with features", "lines_added_by_kind"),
    ("size of recent changes grouped by commit type", "lines_added_by_kind"),
    ("is release-1 merged into other branches, and which", "branches_with"),
    ("where did this commit end up, by branch", "branches_with"),
    ("PRs referenced in the history", "pull_requests"),
    ("collect the #numbers from the log", "pull_requests"),
    ("when did Hugo last commit something", "latest_commit"),
    ("last thing Chidi did in the repository", "latest_commit"),
    ("do we commit on weekends? which day is the busiest", "weekdays"),
    ("what is different in docs compared with the last release", "changed_since"),
    ("list modified files below ui/ between release-2 and now", "changed_since"),
    ("what proportion of each developer's work is refactoring", "fix_share"),
    ("who mostly repairs bugs, in percent", "fix_share"),
    ("hot spots: files that change all the time", "commits_by_file"),
    ("draft a changelog for the next version", "release_notes"),
    ("have I forgotten to commit something", "uncommitted_changes"),
    ("to-dos assigned to Emi in the meeting notes", "open_items"),
    ("which tasks of Bjarne's are not ticked off", "open_items"),
    ("how much did each team sell in May", "sales_by_team"),
    ("January's figures summed for platform, design, support and so on", "sales_by_team"),
    ("failures of the mail service that lasted over three seconds", "slow_errors"),
    ("long running ERROR entries for auth", "slow_errors"),
    ("top earners who can write SQL", "best_paid"),
    ("RAM needed by the heavy services in the configuration", "big_services"),
    ("where does the support team sell how much, spring 2025", "city_totals"),
    ("save a summary of INFO, WARN and ERROR counts for search next to the logs", "level_report"),
    ("worst response times among all warnings", "slowest"),
    ("what took longest anywhere in the system", "slowest"),
    ("how well are recent hires paid in every department", "team_salaries"),
    ("which files eat the disk space in this directory", "largest_files"),
    ("find identical copies of documents", "duplicate_files"),
    ("turn a spreadsheet export into json", "csv_to_json"),
    ("grep through a directory", "search_text"),
    ("how often does the gateway fail", "error_rate"),
    ("p95 and p99 of the search service", "latency_percentiles"),
    ("how many colleagues sit in Oslo, Turku and Umea", "headcount_by_city"),
    ("who celebrates a year more with the company in June", "anniversaries"),
    ("call at 9 am in Lagos: when is that for people in Delhi, Sydney and Lima", "meeting_times"),
    ("what do clocks elsewhere show when it is noon here", "meeting_times"),
    ("time difference between Athens and New York", "hours_apart"),
    ("when can I phone Dubai from Nairobi during office hours of both", "working_hours"),
    ("overlap of business days in London and Tokyo", "working_hours"),
    ("has the clock been put forward in Madrid", "is_summer_time"),
    ("reviewers of Cinder", "who_works_on"),
    ("who is in charge of Borealis", "who_works_on"),
    ("how much working time have we in Porto every week", "hours_in_city"),
    ("note that the Fornax and Hydra stages are part of Cinder", "milestones"),
    ("keep in mind what we agreed on about the database", "remember_decision"),
    ("how much money has Atlas got", "project_budget"),
    ("who pushes code in the small hours, seen from India", "night_commits"),
    ("export the Spanish clients for the mailing", "customer_sheet"),
    ("do cancellations rise on days when we ship fixes", "orders_on_release_days"),
    ("mortgage schedule for twelve payments", "instalments"),
    ("what is left of my debt after each month", "instalments"),
    ("how much will my deposit be worth in ten years", "compound_interest"),
    ("flatten noise in daily numbers", "moving_average"),
    ("will it rain in Bergen tomorrow", "weather_report"),
    ("workload of everybody in the bug tracker", "open_tickets_by_owner"),
    ("revenue in APAC this year by category", "revenue_by_category"),
    ("top 10 customers in Chile", "top_customers"),
    ("orders that shipped late", "late_shipments"),
    ("products with low stock in the kitchen category", "to_reorder"),
    ("average order value of public customers compared with business ones", "average_order_values"),
    ("commits by author for the docs area", "commits_by_author"),
    ("how many commits were made between May and July", "commits_between"),
    ("which branches contain abc1234", "branches_with"),
    ("latest commit of Ada", "latest_commit"),
    ("sales of February by team", "sales_by_team"),
    ("average salary in each team for people who started after 2020", "team_salaries"),
    ("convert 18:00 in Paris to the time in Lima and Seoul", "meeting_times"),
    ("write the customers of Brazil into a csv", "customer_sheet"),
    ("repayment plan for a loan of 5000", "instalments"),
)
