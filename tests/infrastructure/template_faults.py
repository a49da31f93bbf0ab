"""
Mistakes as a hurried engineer makes them, each with what must catch it: a rule of template_rules.py, or the linter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import template_rules as rules
from template_rules import Templates

APPLICATION, DATABASE, LAYER = "template.yaml", "infrastructure/database.yaml", "layers/plungepool/template.yaml"
PROJECT_FILE = "templates/{{cookiecutter.project_name}}/template.yaml"
LINTER = None


@dataclass(frozen=True)
class Fault:
    """In `file`, `old` becomes `new`, everywhere; `rule` is to see it, or SAM or cfn-lint."""

    name: str
    rule: Callable[[Templates], None] | None
    old: str
    new: str
    file: str = APPLICATION

    def apply(self, text: str) -> str:
        assert self.old in text, self.name
        return text.replace(self.old, self.new)


def drop(name: str, rule: Callable[[Templates], None] | None, old: str, file: str = APPLICATION) -> Fault:
    return Fault(name, rule, old, "", file)


FAULTS = [
    # What SAM and cfn-lint see.
    Fault("attribute that no resource has", LINTER, "!GetAtt Orders.Arn", "!GetAtt Orders.Arm"),
    Fault("runtime that is none", LINTER, "Runtime: python3.13", "Runtime: python3.19"),
    Fault("time-out over Lambda's limit", LINTER, "Timeout: 60", "Timeout: 1000"),
    Fault("SnapStart before Python 3.12", LINTER, "Runtime: python3.13", "Runtime: python3.11"),
    Fault("log level of another library", LINTER, "LogLevel: !Ref LogLevel", "LogLevel: WARNING"),
    Fault("misspelt property", LINTER, "BatchSize: 10", "BatchSise: 10"),
    Fault("reference to nothing", LINTER, "Value: !Ref DeadOrders", "Value: !Ref DeadOrder"),
    Fault("condition that is not declared", LINTER, "Condition: PreparationReadsSecrets", "Condition: PreparationReadsSecret"),
    # Settings and functions.
    Fault("administrator by a password that there is not", rules.variables_are_valid_settings, "!If [AdminUsesIam, iam, !If [HasAdminUser, password, !Ref Auth]]", "!If [HasAdminUser, password, !Ref Auth]"),
    Fault("misspelt setting", rules.variables_are_valid_settings, "PLUNGEPOOL_POOL_SIZE", "PLUNGEPOOL_POOLSIZE"),
    Fault("certificate of nobody verified", rules.variables_are_valid_settings, "[CreateDatabase, verify-full, !Ref Tls]", "[CreateDatabase, disable, !Ref Tls]"),
    Fault("demo by the customer's way to sign in", rules.variables_are_valid_settings, "[CreateDatabase, iam, !Ref Auth]", "[CreateDatabase, !Ref Auth, iam]"),
    Fault("wrong variable of prepare_database", rules.role_is_prepared_for_how_it_signs_in, "APP_ROLE_SECRET_ARN:", "APP_ROLE_SECRET:"),
    Fault("output that the nested stack has not", rules.variables_are_valid_settings, "{DemoDatabase.Outputs.Host}", "{DemoDatabase.Outputs.HostName}"),
    Fault("pool beyond what Settings allow", rules.choices_that_are_taken_are_valid_settings, "PLUNGEPOOL_POOL_SIZE: !Ref PoolSize", "PLUNGEPOOL_POOL_SIZE: !Ref OrdersConcurrency"),
    drop("pool that nobody can choose", rules.each_parameter_arrives_where_it_is_read, "        PLUNGEPOOL_POOL: !Ref Pool\n"),
    drop("fleet's limit that nobody can set", rules.each_parameter_arrives_where_it_is_read, "        PLUNGEPOOL_FLEET_LIMIT: !Ref FleetLimit\n"),
    Fault("handler that is not there", rules.functions_exist, "Handler: app.handler", "Handler: app.lambda_handler"),
    Fault("runtime that the layer is not compiled for", rules.functions_run_where_the_layer_is_compiled, "    Runtime: python3.13", "    Runtime: python3.11"),
    Fault("public API", rules.api_asks_for_a_signature, "        DefaultAuthorizer: AWS_IAM\n", ""),
    Fault("description without the sum", rules.numbers_add_up, "13 here + 5 workers", "14 here + 5 workers"),
    Fault("licence that is not ours", rules.repository_metadata_is_complete, "SpdxLicenseId: Apache-2.0", "SpdxLicenseId: MIT"),
    drop("database of another name", rules.each_parameter_arrives_where_it_is_read, "        PLUNGEPOOL_DATABASE: !Ref Database\n"),
    Fault("plain text that nobody can ask for", rules.each_parameter_arrives_where_it_is_read, "verify-full, !Ref Tls]", "verify-full, verify-full]"),
    drop("functions of one size", rules.each_parameter_arrives_where_it_is_read, "    MemorySize: 512\n"),
    # Rights.
    Fault("typo in an action", rules.every_role_may_do_what_it_needs_and_nothing_else, "Action: rds-db:connect", "Action: rds-db:Conect"),
    Fault("right for every user", rules.every_role_may_do_what_it_needs_and_nothing_else, "dbuser:${Id}/${User}", "dbuser:${Id}/*"),
    Fault("ARN of the wrong service", rules.every_role_may_do_what_it_needs_and_nothing_else, "arn:${AWS::Partition}:rds-db:", "arn:${AWS::Partition}:rds:"),
    Fault("secret for whom it is not", rules.every_role_may_do_what_it_needs_and_nothing_else, "    - !Equals [!Ref Auth, secret]\n    - !Not", "    - !Not"),
    Fault("key for everything that it opens", rules.every_role_may_do_what_it_needs_and_nothing_else, "{'kms:EncryptionContext:SecretARN': !Ref SecretArn}", "{'kms:CallerAccount': !Ref AWS::AccountId}"),
    Fault("key's right without a key", rules.every_role_may_do_what_it_needs_and_nothing_else, "UsesSecretKey: !And [!Condition UsesSecret,", "UsesSecretKey: !And [!Condition HasAdminSecret,"),
    Fault("administrator's secret for the application", rules.every_role_may_do_what_it_needs_and_nothing_else, "              Resource: !Ref SecretArn\n", "              Resource: [!Ref SecretArn, !Ref AdminSecretArn]\n"),
    Fault("administrator of the account", rules.every_role_may_do_what_it_needs_and_nothing_else, "        - !If [PreparationReadsSecrets, !Ref AdminPolicy, !Ref AWS::NoValue]", "        - AdministratorAccess"),
    drop("administrator who may not sign in", rules.every_role_may_do_what_it_needs_and_nothing_else, "        - !If [AdminUsesIam, !Ref AdminConnectPolicy, !Ref AWS::NoValue]\n"),
    Fault("administrator who may be anybody", rules.every_role_may_do_what_it_needs_and_nothing_else, "dbuser:${ResourceId}/${AdminUser}", "dbuser:${ResourceId}/*"),
    drop("administrator's token beside a secret", rules.every_role_may_do_what_it_needs_and_nothing_else, "    - !Not [!Condition HasAdminSecret]\n"),
    drop("administrator's token beside a password", rules.every_role_may_do_what_it_needs_and_nothing_else, "    - !Equals [!Ref AdminPassword, '']\n"),
    Fault("proxy that reads every secret", rules.every_role_may_do_what_it_needs_and_nothing_else, "                  Resource: !GetAtt ApplicationSecret.Id", "                  Resource: '*'", DATABASE),
    drop("proxy's role for every account", rules.every_role_trusts_its_own_service, "            Condition:\n              StringEquals: {'aws:SourceAccount': !Ref AWS::AccountId}\n", DATABASE),
    drop("policy that says nothing", rules.policies_are_whole, "    Condition: NeedsRights\n"),
    Fault("policy of another age", rules.policies_are_whole, "Version: '2012-10-17'", "Version: '2008-10-17'"),
    # Reachability.
    Fault("proxy's id from the wrong part", rules.client_connects_where_it_may, "!Select [6, !Split [':', !GetAtt Proxy", "!Select [5, !Split [':', !GetAtt Proxy", DATABASE),
    Fault("right for the database behind the proxy", rules.client_connects_where_it_may, "      - !Select [6, !Split [':', !GetAtt Proxy.DBProxyArn]]", "      - !If [IsAurora, !GetAtt Cluster.DBClusterResourceId, !GetAtt Instance.DbiResourceId]", DATABASE),
    Fault("administrator through the proxy", rules.client_connects_where_it_may, "${DemoDatabase.Outputs.AdminHost}", "${DemoDatabase.Outputs.Host}"),
    Fault("database open to a network", rules.only_the_functions_reach_the_database, "SourceSecurityGroupId: !Ref ClientSecurityGroupId", "CidrIp: 10.0.0.0/8", DATABASE),
    drop("proxy asked for before it is let in", rules.only_the_functions_reach_the_database, "    DependsOn: ProxyMayConnect\n", DATABASE),
    Fault("proxy let in at another port", rules.only_the_functions_reach_the_database, "      ToPort: !Ref Port\n      SourceSecurityGroupId: !GetAtt ProxySecurityGroup.GroupId", "      ToPort: 5433\n      SourceSecurityGroupId: !GetAtt ProxySecurityGroup.GroupId", DATABASE),
    Fault("public database", rules.only_the_functions_reach_the_database, "PubliclyAccessible: false", "PubliclyAccessible: true", DATABASE),
    Fault("endpoint in the database's group", rules.only_the_functions_reach_the_database, "SecurityGroupIds: [!GetAtt EndpointSecurityGroup.GroupId]", "SecurityGroupIds: [!GetAtt DatabaseSecurityGroup.GroupId]", DATABASE),
    Fault("functions that cannot reach AWS", rules.only_the_functions_reach_the_database, "          FromPort: 443\n          ToPort: 443", "          FromPort: 80\n          ToPort: 80"),
    Fault("DatabaseCidr that nobody asks", rules.only_the_functions_reach_the_database, "CidrIp: !Ref DatabaseCidr", "CidrIp: 0.0.0.0/0"),
    Fault("egress from the database's group", rules.only_the_functions_reach_the_database, "          CidrIp: 255.255.255.255/32\n\n  ProxySecurityGroup", "          CidrIp: 0.0.0.0/0\n\n  ProxySecurityGroup", DATABASE),
    Fault("endpoint of a service misspelt", rules.endpoints_are_made_where_there_is_no_way_out, "secretsmanager\n", "secretmanager\n", DATABASE),
    drop("endpoint whose name does not resolve", rules.endpoints_are_made_where_there_is_no_way_out, "      PrivateDnsEnabled: true\n", DATABASE),
    Fault("endpoint for every account", rules.endpoints_are_made_where_there_is_no_way_out, "StringEquals: {'aws:PrincipalAccount': !Ref AWS::AccountId, 'aws:ResourceAccount': !Ref AWS::AccountId}", "StringEquals: {'aws:PrincipalAccount': !Ref AWS::AccountId}", DATABASE),
    Fault("endpoint that CloudFormation's answer does not pass", rules.endpoints_are_made_where_there_is_no_way_out, "Action: s3:PutObject", "Action: s3:GetObject", DATABASE),
    Fault("endpoint that passes nothing", rules.endpoints_are_made_where_there_is_no_way_out, "Action: secretsmanager:*", "Action: secretsmanager:ListSecrets", DATABASE),
    # Limits.
    Fault("reservation by another parameter", rules.limits_reach_what_they_limit, "ReservesOrders: !Not [!Equals [!Ref OrdersConcurrency, 0]]", "ReservesOrders: !Not [!Equals [!Ref WorkersConcurrency, 0]]"),
    Fault("reservation of nothing", rules.limits_reach_what_they_limit, "ReservedConcurrentExecutions: !If [ReservesOrders, !Ref OrdersConcurrency, !Ref AWS::NoValue]", "ReservedConcurrentExecutions: !Ref OrdersConcurrency"),
    drop("workers without a bound", rules.limits_reach_what_they_limit, "            ScalingConfig:\n              MaximumConcurrency: !Ref WorkersConcurrency\n"),
    Fault("role's limit by the pool's size", rules.limits_reach_what_they_limit, "APP_ROLE_CONNECTION_LIMIT: !Ref ConnectionLimit", "APP_ROLE_CONNECTION_LIMIT: !Ref PoolSize"),
    Fault("statement's time-out by a lock's", rules.limits_reach_what_they_limit, "APP_ROLE_STATEMENT_TIMEOUT_S: !Ref StatementTimeoutSeconds", "APP_ROLE_STATEMENT_TIMEOUT_S: !Ref LockTimeoutSeconds"),
    drop("idle session's time-out that reaches nobody", rules.limits_reach_what_they_limit, "          APP_ROLE_IDLE_SESSION_TIMEOUT_S: !Ref IdleSessionTimeoutSeconds\n"),
    Fault("defaults beyond the limit", rules.numbers_add_up, "    Default: 13\n", "    Default: 20\n"),
    Fault("handler that outlives the API", rules.nobody_waits_longer_than_is_of_use, "    Timeout: 15\n", "    Timeout: 45\n"),
    Fault("wait for the proxy longer than for the handler", rules.nobody_waits_longer_than_is_of_use, "ConnectionBorrowTimeout: 10", "ConnectionBorrowTimeout: 120", DATABASE),
    Fault("proxy that takes every connection", rules.nobody_waits_longer_than_is_of_use, "MaxConnectionsPercent: 80", "MaxConnectionsPercent: 100", DATABASE),
    Fault("cluster that pauses under its proxy", rules.nobody_waits_longer_than_is_of_use, "MinCapacity: 0.5", "MinCapacity: 0", DATABASE),
    # Data.
    Fault("version that RDS never had", rules.engine_version_is_offered, "Default: '17'", "Default: '17.99'", DATABASE),
    Fault("replaced cluster whose data are lost", rules.data_outlives_mistakes, "UpdateReplacePolicy: Snapshot", "UpdateReplacePolicy: Delete", DATABASE),
    Fault("database deleted without a snapshot", rules.data_outlives_mistakes, "DeletionPolicy: !If [KeepsSnapshot, Snapshot, Delete]", "DeletionPolicy: Delete", DATABASE),
    Fault("protection that nobody can set", rules.data_outlives_mistakes, "DeletionProtection: !Ref Protect", "DeletionProtection: false", DATABASE),
    Fault("snapshot the other way round", rules.data_outlives_mistakes, "KeepsSnapshot: !Equals [!Ref FinalSnapshot, 'true']", "KeepsSnapshot: !Equals [!Ref FinalSnapshot, 'false']", DATABASE),
    Fault("backups for a day", rules.data_outlives_mistakes, "BackupRetentionPeriod: 7", "BackupRetentionPeriod: 1", DATABASE),
    Fault("plain text on the disk", rules.data_outlives_mistakes, "StorageEncrypted: true", "StorageEncrypted: false", DATABASE),
    Fault("plain text on the wire", rules.data_outlives_mistakes, "rds.force_ssl: '1'", "rds.force_ssl: '0'", DATABASE),
    drop("parameters that nobody uses", rules.data_outlives_mistakes, "      DBParameterGroupName: !Ref InstanceParameters\n", DATABASE),
    drop("storage that does not grow", rules.data_outlives_mistakes, "      MaxAllocatedStorage: 100\n", DATABASE),
    Fault("demo data in the customer's database", rules.preparation_is_part_of_the_deployment, "DemoData: !If [CreateDatabase, 'true', 'false']", "DemoData: 'true'"),
    drop("preparation that does not run again", rules.preparation_is_part_of_the_deployment, "      FunctionVersion: !Ref PrepareDatabaseFunction.Version\n"),
    Fault("layer that goes with its stack", rules.what_others_use_is_kept, "      RetentionPolicy: Retain\n", "      RetentionPolicy: Delete\n"),
    Fault("queue that stays behind", rules.what_others_use_is_kept, "  DeadOrders:\n    Type: AWS::SQS::Queue\n    DeletionPolicy: Delete", "  DeadOrders:\n    Type: AWS::SQS::Queue\n    DeletionPolicy: Retain"),
    Fault("version that was not asked for", rules.demo_database_is_what_was_asked_for, "EngineVersion: !Ref EngineVersion", "EngineVersion: '17'", DATABASE),
    drop("database in the default subnets", rules.demo_database_is_what_was_asked_for, "      DBSubnetGroupName: !Ref SubnetGroup\n", DATABASE),
    drop("log that nobody writes", rules.demo_database_is_what_was_asked_for, "      EnableCloudwatchLogsExports: [postgresql]\n", DATABASE),
    Fault("secret that nobody needs", rules.demo_database_is_what_was_asked_for, "    Condition: ProxyUsesSecret\n    DeletionPolicy", "    DeletionPolicy", DATABASE),
    Fault("groups in another VPC", rules.demo_database_is_what_was_asked_for, "      GroupDescription: The demo database\n      VpcId: !Ref VpcId\n", "      GroupDescription: The demo database\n", DATABASE),
    # Secrets.
    Fault("proxy that takes passwords", rules.proxy_demands_iam_and_tls, "IAMAuth: REQUIRED", "IAMAuth: DISABLED", DATABASE),
    Fault("proxy without TLS", rules.proxy_demands_iam_and_tls, "RequireTLS: true", "RequireTLS: false", DATABASE),
    Fault("password shown in the console", rules.passwords_are_not_shown, "    NoEcho: true\n    Description: Password of AdminUser", "    Description: Password of AdminUser"),
    Fault("password by default", rules.passwords_are_not_shown, "  AdminPassword:\n    Type: String\n    Default: ''", "  AdminPassword:\n    Type: String\n    Default: 'change-me'"),
    Fault("password in an output", rules.passwords_are_not_shown, "    Value: !Ref DeadOrders\n", "    Value: !Sub '${DeadOrders} ${Password}'\n"),
    Fault("administrator's password for every function", rules.passwords_are_not_shown, "PLUNGEPOOL_PASSWORD: !If [UsesPassword, !Ref Password, '']\n        PLUNGEPOOL_TLS", "PLUNGEPOOL_PASSWORD: !If [UsesPassword, !Ref AdminPassword, '']\n        PLUNGEPOOL_TLS"),
    Fault("administrator's secret for every function", rules.secrets_are_named_where_they_are_used, "PLUNGEPOOL_SECRET_ARN: !If [UsesSecret, !Ref SecretArn, '']", "PLUNGEPOOL_SECRET_ARN: !Ref AdminSecretArn"),
    Fault("short password", rules.secrets_are_named_where_they_are_used, "PasswordLength: 40", "PasswordLength: 8", DATABASE),
    Fault("secret of the administrator's name", rules.secrets_are_named_where_they_are_used, '{"username": "${User}"}', '{"username": "postgres"}', DATABASE),
    # Schedules and queues.
    Fault("queue that shows a message too soon", rules.queue_outlives_its_function, "VisibilityTimeout: 180", "VisibilityTimeout: 30"),
    drop("no partial batch responses", rules.queue_outlives_its_function, "            FunctionResponseTypes: [ReportBatchItemFailures]\n"),
    Fault("dead letters that go first", rules.queue_outlives_its_function, "  DeadOrders:\n    Type: AWS::SQS::Queue\n    DeletionPolicy: Delete\n    UpdateReplacePolicy: Delete\n    Properties:\n      MessageRetentionPeriod: 1209600", "  DeadOrders:\n    Type: AWS::SQS::Queue\n    DeletionPolicy: Delete\n    UpdateReplacePolicy: Delete\n    Properties:\n      MessageRetentionPeriod: 86400"),
    Fault("queue in clear", rules.queue_outlives_its_function, "SqsManagedSseEnabled: true", "SqsManagedSseEnabled: false"),
    Fault("message that is tried once", rules.queue_outlives_its_function, "maxReceiveCount: 5", "maxReceiveCount: 1"),
    Fault("plural of one hour", rules.schedule_is_well_formed, "cron(15 0 * * ? *)", "rate(1 hours)"),
    Fault("cron of five fields", rules.schedule_is_well_formed, "cron(15 0 * * ? *)", "cron(15 0 * * *)"),
    Fault("schedule in another time zone", rules.report_is_of_yesterday_and_never_lost, "ScheduleExpressionTimezone: UTC", "ScheduleExpressionTimezone: Europe/Berlin"),
    drop("report that is asked for once", rules.report_is_of_yesterday_and_never_lost, "            RetryPolicy:\n              MaximumRetryAttempts: 10\n              MaximumEventAgeInSeconds: 21600\n"),
    drop("report whose event is lost", rules.report_is_of_yesterday_and_never_lost, "            DeadLetterConfig:\n              Arn: !GetAtt LostReports.Arn\n"),
    Fault("report that fails into the orders", rules.report_is_of_yesterday_and_never_lost, "            Destination: !GetAtt LostReports.Arn", "            Destination: !GetAtt DeadOrders.Arn"),
    Fault("retry on another day", rules.report_is_of_yesterday_and_never_lost, "MaximumEventAgeInSeconds: 21600", "MaximumEventAgeInSeconds: 86400"),
    Fault("schedule that is switched off", rules.report_is_of_yesterday_and_never_lost, "            ScheduleExpressionTimezone: UTC", "            ScheduleExpressionTimezone: UTC\n            State: DISABLED"),
    drop("second stack's schedule of the same name", rules.two_stacks_fit_into_one_account, "            OmitName: true\n"),
    # Alarms and logs.
    drop("log without an end", rules.logs_end, "      RetentionInDays: !Ref LogRetentionDays\n", DATABASE),
    drop("log group after the database", rules.logs_end, "    DependsOn: DatabaseLogGroup\n", DATABASE),
    Fault("log group of another name", rules.logs_end, "/aws/rds/proxy/plungepool-${Id}", "/aws/rds/proxies/plungepool-${Id}", DATABASE),
    Fault("retention that nobody can set", rules.logs_end, "RetentionInDays: !Ref LogRetentionDays", "RetentionInDays: '30'"),
    Fault("alarm about another function", rules.what_needs_somebody_wakes_somebody, "      MetricName: Throttles\n      Dimensions: [{Name: FunctionName, Value: !Ref ReportSalesFunction}]", "      MetricName: Throttles\n      Dimensions: [{Name: FunctionName, Value: !Ref HandleOrdersFunction}]"),
    Fault("alarm about the queue, not its dead letters", rules.what_needs_somebody_wakes_somebody, "Value: !GetAtt DeadOrders.QueueName", "Value: !GetAtt Orders.QueueName"),
    Fault("alarm by a dimension that the metric has not", rules.what_needs_somebody_wakes_somebody, "{Name: ProxyName, Value: !Ref Proxy}", "{Name: DBProxyName, Value: !Ref Proxy}", DATABASE),
    Fault("microseconds taken for seconds", rules.what_needs_somebody_wakes_somebody, "Threshold: 1000000", "Threshold: 1", DATABASE),
    Fault("alarm when there is much room", rules.what_needs_somebody_wakes_somebody, "ComparisonOperator: LessThanThreshold", "ComparisonOperator: GreaterThanOrEqualToThreshold", DATABASE),
    Fault("alarm that tells nobody", rules.what_needs_somebody_wakes_somebody, "AlarmTopicArn: !Ref AlarmTopicArn", "AlarmTopicArn: ''"),
    Fault("alarm without an action", rules.what_needs_somebody_wakes_somebody, "Notifies: !Not [!Equals [!Ref AlarmTopicArn, '']]", "Notifies: !Equals [!Ref AlarmTopicArn, '']"),
    Fault("alarm by the count of errors, not their sum", rules.what_needs_somebody_wakes_somebody, "      Statistic: Sum\n", "      Statistic: SampleCount\n"),
    Fault("alarm that is on while nothing happens", rules.what_needs_somebody_wakes_somebody, "TreatMissingData: notBreaching", "TreatMissingData: breaching"),
    drop("load that nobody measures", rules.what_needs_somebody_wakes_somebody, "      EnablePerformanceInsights: true\n", DATABASE),
    Fault("load of the cluster, which has none", rules.what_needs_somebody_wakes_somebody, "{Name: DBInstanceIdentifier, Value: !If [IsAurora, !Ref ClusterInstance,", "{Name: DBInstanceIdentifier, Value: !If [IsAurora, !Ref Cluster,", DATABASE),
    Fault("proxy that is full before anybody knows", rules.what_needs_somebody_wakes_somebody, "Threshold: 70", "Threshold: 100", DATABASE),
    Fault("share of another thing", rules.what_needs_somebody_wakes_somebody, "Expression: 100 * connections / allowed", "Expression: 100 * allowed / connections", DATABASE),
    Fault("alarm that leads nowhere", rules.every_alarm_says_what_to_do, "${RunbookUrl}#late-orders", "${RunbookUrl}#late-messages"),
    Fault("alarm that leads to another one's section", rules.every_alarm_says_what_to_do, "${RunbookUrl}#proxy-waits", "${RunbookUrl}#proxy-pinned", DATABASE),
    Fault("runbook that is not handed on", rules.nested_parameters_and_outputs_match, "        RunbookUrl: !Ref RunbookUrl\n", ""),
    # The dashboard.
    Fault("metric that there is not", rules.metrics_exist, '"DBLoadNonCPU"', '"DBLoadNonCpu"'),
    Fault("metric by a dimension that it has not", rules.metrics_exist, '"ApproximateAgeOfOldestMessage", "QueueName"', '"ApproximateAgeOfOldestMessage", "Queue"'),
    Fault("average of what each machine of the proxy reports", rules.metrics_exist, '"title": "Connections of the proxy", "region": "${AWS::Region}", "stat": "Sum"', '"title": "Connections of the proxy", "region": "${AWS::Region}", "stat": "Average"'),
    Fault("queue shown as a function", rules.metrics_exist, '"Throttles", "FunctionName", "${ReportSalesFunction}"', '"Throttles", "FunctionName", "${LostReports}"'),
    Fault("dashboard with a comma too many", rules.dashboard_shows_what_matters, '"yAxis": "right"}]]}}\n          ]}', '"yAxis": "right"}]]}},\n          ]}'),
    Fault("limit of somebody else", rules.dashboard_shows_what_matters, '"value": ${ConnectionLimit}', '"value": ${PoolSize}'),
    drop("alarm that the dashboard leaves out", rules.dashboard_shows_what_matters, ', "${LostReportsAlarm.Arn}"'),
    drop("dashboard that nobody can do without", rules.dashboard_shows_what_matters, "    Condition: MakesDashboard\n"),
    Fault("queue that the dashboard leaves out", rules.dashboard_shows_what_matters, '"${LostReports.QueueName}"', '"${DeadOrders.QueueName}"'),
    Fault("proxy that is shown where there is none", rules.dashboard_shows_what_matters, "CreatesProxy: !And [!Condition CreateDatabase, !Equals [!Ref Endpoint, proxy]]", "CreatesProxy: !Or [!Condition CreateDatabase, !Equals [!Ref Endpoint, proxy]]"),
    Fault("dashboard of every stack", rules.two_stacks_fit_into_one_account, "DashboardName: !Sub ${AWS::StackName}-${AWS::Region}", "DashboardName: plungepool"),
    Fault("dashboard of one region", rules.nothing_names_a_partition_or_a_region, '"title": "Throttles", "region": "${AWS::Region}"', '"title": "Throttles", "region": "eu-west-1"'),
    drop("instance of one's own beside a demo database", rules.rules_refuse_what_would_not_work, "      - Assert: !And [!Equals [!Ref DatabaseInstance, ''], !Equals [!Ref DatabaseProxy, '']]\n        AssertDescription: 'DatabaseInstance and DatabaseProxy are for DatabaseMode existing; a demo database is on the dashboard by itself'\n"),
    drop("metrics that nobody sends", rules.metrics_exist, "        PLUNGEPOOL_METRICS: !Ref DatabaseMetrics\n"),
    Fault("metric that the layer has not", rules.metrics_exist, '"DatabaseReconnects", "service"', '"DatabaseReconnect", "service"'),
    Fault("metric of another service", rules.metrics_exist, '"DatabaseConnectsFailed", "service", "${AWS::StackName}"', '"DatabaseConnectsFailed", "service", "plungepool"'),
    Fault("sum of milliseconds", rules.metrics_exist, '"title": "What invocations waited for, p99, ms", "region": "${AWS::Region}", "stat": "p99"', '"title": "What invocations waited for, p99, ms", "region": "${AWS::Region}", "stat": "Sum"'),
    Fault("alarm over metrics that are not sent", rules.dashboard_shows_what_matters, "  LeaksAlarm:\n    Type: AWS::CloudWatch::Alarm\n    Condition: SendsMetrics\n", "  LeaksAlarm:\n    Type: AWS::CloudWatch::Alarm\n"),
    Fault("alarm by another dimension", rules.what_needs_somebody_wakes_somebody, "Dimensions: [{Name: service, Value: !Ref AWS::StackName}]", "Dimensions: [{Name: Service, Value: !Ref AWS::StackName}]"),
    Fault("query for a field that no line has", rules.saved_queries_find_what_is_logged, "function_request_id, requestId", "request_id, requestId"),
    Fault("query that takes the recorder's line apart wrongly", rules.saved_queries_find_what_is_logged, "parse message '\"duration_ms\":*,'", "parse message '\"duration\":*,'"),
    Fault("query that overlooks the place of a slow statement", rules.saved_queries_find_what_is_logged, "parse message '\"where\":\"*\"'", "parse message '\"line\":\"*\"'"),
    Fault("query of the API's log", rules.saved_queries_find_what_is_logged, "LogGroupNames: [!Ref HandleOrdersLogGroup,", "LogGroupNames: [!Ref ApiLogGroup,"),
    Fault("query that overlooks time-outs", rules.saved_queries_find_what_is_logged, 'in ["timeout", "error", "failure"]', 'in ["error", "failure"]'),
    Fault("own database without an alarm", rules.what_needs_somebody_wakes_somebody, "ShowsOwnInstance: !Not [!Equals [!Ref DatabaseInstance, '']]", "ShowsOwnInstance: !Not [!Equals [!Ref DatabaseInstance, !Ref DatabaseInstance]]"),
    Fault("own proxy by the name of the instance", rules.what_needs_somebody_wakes_somebody, "Value: !Ref DatabaseProxy}", "Value: !Ref DatabaseInstance}"),
    drop("new version for everybody at once", rules.new_version_is_tried_first, "      DeploymentPreference:\n        Type: !Ref OrdersDeployment\n        Alarms: [!Ref HandleOrdersErrorsAlarm]\n"),
    drop("canary that nobody watches", rules.new_version_is_tried_first, "        Alarms: [!Ref HandleOrdersErrorsAlarm]\n"),
    # Outputs and parameters.
    Fault("output of the wrong queue", rules.outputs_say_where_things_are, "    Value: !Ref DeadOrders\n", "    Value: !Ref Orders\n"),
    Fault("output that is not resolved", rules.outputs_say_where_things_are, "    Value: !Sub https://${Api}", "    Value: https://${Api}"),
    Fault("host of the wrong kind of database", rules.outputs_say_where_things_are, "      - !If [IsAurora, !GetAtt Cluster.Endpoint.Address, !GetAtt Instance.Endpoint.Address]\n  Port", "      - !GetAtt Cluster.Endpoint.Address\n  Port", DATABASE),
    Fault("pattern that takes every user", rules.parameters_are_held_to_their_bounds, "AllowedPattern: '[A-Za-z_][A-Za-z0-9_]{0,62}'", "AllowedPattern: '[A-Za-z_*][A-Za-z0-9_*]{0,62}'"),
    drop("number without a lower bound", rules.parameters_are_held_to_their_bounds, "    MinValue: 1\n    MaxValue: 16\n"),
    Fault("secret by its name", rules.parameters_are_held_to_their_bounds, "secret:[A-Za-z0-9/_+=.@!-]+-[A-Za-z0-9]{6})?'", "secret:[A-Za-z0-9/_+=.@!-]+)?'"),
    Fault("workers below what SQS takes", rules.parameters_are_held_to_their_bounds, "    MinValue: 2\n", "    MinValue: 1\n"),
    Fault("version beside those that are offered", rules.parameters_are_held_to_their_bounds, "AllowedPattern: '1[4-8](\\.[0-9]{1,2})?'", "AllowedPattern: '1[0-9](\\.[0-9]{1,2})?'", DATABASE),
    Fault("parameter of no group", rules.parameters_have_a_use_and_a_place, ", OrdersDeployment, AlarmTopicArn]", ", OrdersDeployment]"),
    Fault("parameter that nobody reads", rules.parameters_have_a_use_and_a_place, "RetentionInDays: !Ref LogRetentionDays", "RetentionInDays: 30", DATABASE),
    Fault("parameter handed to the wrong one", rules.nested_parameters_and_outputs_match, "        Protect: !Ref ProtectDatabase", "        Protect: !Ref FinalSnapshot"),
    Fault("default that differs below", rules.nested_parameters_and_outputs_match, "    Default: plungepool_app\n", "    Default: app\n", DATABASE),
    Fault("parameter that is not handed on", rules.nested_parameters_and_outputs_match, "        AlarmTopicArn: !Ref AlarmTopicArn\n", "", APPLICATION),
    # Rules and conditions.
    drop("administrator without a way in", rules.rules_refuse_what_would_not_work, "      - Assert: !Or [!Equals [!Ref AdminUser, ''], !Not [!Equals [!Ref AdminPassword, '']], !Equals [!Ref Auth, iam]]\n        AssertDescription: 'AdminUser needs AdminPassword, but for Auth iam, with which the administrator signs in by a token too'\n"),
    Fault("rule the other way round", rules.rules_refuse_what_would_not_work, "- Assert: !Not [!Equals [!Ref Host, '']]", "- Assert: !Equals [!Ref Host, '']"),
    Fault("rule for the wrong mode", rules.rules_refuse_what_would_not_work, "RuleCondition: !Equals [!Ref DatabaseMode, existing]", "RuleCondition: !Equals [!Ref DatabaseMode, aurora]"),
    Fault("rule for one of two modes", rules.rules_refuse_what_would_not_work, "!Contains [[aurora, instance], !Ref DatabaseMode]", "!Contains [[aurora], !Ref DatabaseMode]"),
    Fault("rule that looks at something else", rules.rules_refuse_what_would_not_work, "      - Assert: !Not [!EachMemberEquals [!Ref SubnetIds, '']]", "      - Assert: !Not [!Equals [!Ref VpcId, '']]"),
    Fault("rule that is of parameters' other end", rules.rules_refuse_what_would_not_work, "!Or [!Equals [!Ref Endpoint, direct], !Equals [!Ref Port, 5432]]", "!Or [!Equals [!Ref Endpoint, proxy], !Equals [!Ref Port, 5432]]"),
    Fault("rule with a function that rules have not", rules.rules_refuse_what_would_not_work, "!EachMemberEquals [!Ref SecurityGroupIds, '']", "!Equals [!Join ['', !Ref SecurityGroupIds], '']"),
    Fault("rule that one empty member escapes", rules.rules_refuse_what_would_not_work, "!Not [!EachMemberEquals [!Ref SecurityGroupIds, '']]", "!EachMemberIn [!Ref SecurityGroupIds, ['', sg-1]]"),
    Fault("functions in no VPC", rules.only_the_functions_reach_the_database, "InVpc: !Not [!Equals [!Join ['', !Ref SubnetIds], '']]", "InVpc: !Equals [!Join ['', !Ref SubnetIds], '']"),
    Fault("proxy always", rules.outputs_say_where_things_are, "HasProxy: !Equals [!Ref Endpoint, proxy]", "HasProxy: !Not [!Equals [!Ref Endpoint, '']]", DATABASE),
    Fault("database whose name is lost", rules.data_outlives_mistakes, "DBName: !If [IsDefaultDatabase, !Ref AWS::NoValue, !Ref Database]", "DBName: !Ref AWS::NoValue", DATABASE),
    # Partitions and names.
    Fault("ARN of one partition", rules.nothing_names_a_partition_or_a_region, "!Sub arn:${AWS::Partition}:dsql:", "!Sub arn:aws:dsql:"),
    Fault("ARN of one region", rules.nothing_names_a_partition_or_a_region, "arn:${AWS::Partition}:rds-db:${AWS::Region}:", "arn:${AWS::Partition}:rds-db:eu-west-1:", DATABASE),
    Fault("address of one partition", rules.nothing_names_a_partition_or_a_region, "${AWS::Region}.${AWS::URLSuffix}/orders", "${AWS::Region}.amazonaws.com/orders"),
    Fault("layer of every stack", rules.two_stacks_fit_into_one_account, "LayerName: !Sub ${AWS::StackName}-powertools", "LayerName: powertools"),
    Fault("database of every stack", rules.two_stacks_fit_into_one_account, "      DBProxyName: !Sub\n        - plungepool-${Id}\n", "      DBProxyName: !Sub\n        - plungepool\n", DATABASE),
    # The layer's own template, and the project's.
    Fault("published layer that goes with the next one", rules.what_others_use_is_kept, "RetentionPolicy: Retain", "RetentionPolicy: Delete", LAYER),
    Fault("parameter that docs call otherwise", rules.layer_is_handed_on, "Name: /plungepool/layer-arn", "Name: /layer-arn", LAYER),
    Fault("layer for one architecture", rules.functions_run_where_the_layer_is_compiled, "CompatibleArchitectures: [x86_64, arm64]", "CompatibleArchitectures: [x86_64]", LAYER),
    Fault("layer for one Python", rules.functions_run_where_the_layer_is_compiled, "CompatibleRuntimes: [python3.12, python3.13, python3.14]", "CompatibleRuntimes: [python3.13]", LAYER),
    Fault("layer built from another folder", rules.layer_is_handed_on, "ContentUri: .", "ContentUri: plungepool", LAYER),
    Fault("parameter that holds no ARN", rules.layer_is_handed_on, "Value: !Ref PlungepoolLayer\n\nOutputs", "Value: !GetAtt PlungepoolLayer.Arn\n\nOutputs", LAYER),
    Fault("project's layer that goes with it", rules.what_others_use_is_kept, "RetentionPolicy: Retain", "RetentionPolicy: Delete", PROJECT_FILE),
    Fault("project's right for every resource", rules.project_is_what_its_schema_says, "dbuser:${ResourceId}/${User}", "dbuser:*/${User}", PROJECT_FILE),
    Fault("project's right for one partition", rules.nothing_names_a_partition_or_a_region, "arn:${AWS::Partition}:rds-db", "arn:aws:rds-db", PROJECT_FILE),
    Fault("project beyond its role's limit", rules.project_is_what_its_schema_says, "    Default: 20\n", "    Default: 100\n", PROJECT_FILE),
    Fault("project's API for everybody", rules.api_asks_for_a_signature, "        DefaultAuthorizer: AWS_IAM\n", "", PROJECT_FILE),
    Fault("project's log without an end", rules.logs_end, "      RetentionInDays: 30\n", "      LogGroupClass: STANDARD\n", PROJECT_FILE),
    Fault("project's user of any name", rules.parameters_are_held_to_their_bounds, "    Default: 'app'\n    AllowedPattern: '[A-Za-z_][A-Za-z0-9_]{0,62}'\n", "    Default: 'app'\n", PROJECT_FILE),
    Fault("project's subnets without groups", rules.rules_refuse_what_would_not_work, "- Assert: !Or\n          - !And [!EachMemberEquals", "- Assert: !Or\n          - !Or [!EachMemberEquals", PROJECT_FILE),
    Fault("project's function under another address", rules.project_is_what_its_schema_says, "PLUNGEPOOL_HOST: !Ref Host", "PLUNGEPOOL_HOST_NAME: !Ref Host", PROJECT_FILE),
    Fault("project that publishes what it was given", rules.project_is_what_its_schema_says, "PublishesLayer: !Equals [!Ref PlungepoolLayerArn, '']", "PublishesLayer: !Not [!Equals [!Ref PlungepoolLayerArn, x]]", PROJECT_FILE),
]  # fmt: skip
